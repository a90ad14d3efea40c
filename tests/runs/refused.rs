//! Folders and files that a run is not made in, or not gone on with: in use, damaged, of other rows or versions, not to be written, and
//! pipes.

use super::*;

#[test]
fn a_folder_that_another_process_trains_in_is_left_alone() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "3"])));
    let folder = PathBuf::from(setting.path("run"));
    let before = files(&folder);
    let held = fs::File::open(folder.join("log.txt")).expect("log.txt");
    held.try_lock().expect("nobody has it");
    let message = error(&words(&setting.resume("run")));
    assert!(message.contains("nothing else writes to") && message.contains("run"), "{message}");
    assert!(files(&folder) == before, "the run folder changed");
    drop(held);
    success(&words(&setting.resume("run")));
}

/// Whoever comes second is refused, or goes on alone where the first left nothing behind.
#[test]
fn of_two_trainings_that_begin_in_one_folder_one_is_refused() {
    let setting = Setting::new();
    for round in 0..6 {
        let name = format!("run-{round}");
        let begin = |seed: &str| {
            let of = setting.train(&name, &["--steps", "3", "--seed", seed]);
            let mut command = command(&words(&of));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs")
        };
        let ends = [begin("1"), begin("2")].map(|child| child.wait_with_output().expect("an end"));
        let refused: Vec<&Output> = ends.iter().filter(|end| !end.status.success()).collect();
        assert_eq!(refused.len(), 1, "{}", said(&ends[0]) + &said(&ends[1]));
        let message = said(refused[0]);
        assert!(message.contains("nothing else writes to") || message.contains("holds files"), "{message}");
        let log = fs::read_to_string(setting.path(&format!("{name}/log.jsonl"))).expect("a log");
        assert_eq!(log.lines().filter(|line| line.contains("\"loss\"")).count(), 3, "{log}");
    }
}

/// A file of settings that a user wrote would else be replaced by a run's, or removed with what a run left.
#[test]
fn settings_that_lie_in_a_folder_alone_stay() {
    let setting = Setting::new();
    let mine = "steps = 3 # mine\n";
    for name in ["run", "few"] {
        fs::create_dir(setting.path(name)).expect("a folder");
        fs::write(setting.path(&format!("{name}/config.toml")), mine).expect("written");
    }
    let few = ["--few-shot", "1000", "--draws", "2"];
    for (name, more) in [("run", &[][..]), ("few", &few)] {
        let message = error(&words(&setting.train(name, more)));
        assert!(message.contains("holds files"), "{message}");
        let kept = fs::read_to_string(setting.path(&format!("{name}/config.toml"))).expect("the settings");
        assert_eq!(kept, mine);
    }
}

#[test]
fn a_link_to_nothing_is_neither_a_folder_nor_a_model() {
    let setting = Setting::new();
    std::os::unix::fs::symlink("nowhere", setting.path("run")).expect("a link");
    let message = error(&words(&setting.train("run", &[])));
    assert!(message.contains("a link to nothing") && message.contains("--out"), "{message}");
    let error = promptmix::pretrained::locate(&setting.path("run")).expect_err("nothing is there");
    assert!(error.to_string().contains("could not open"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_refused_and_nothing_else_is_touched() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "3"])));
    let folder = PathBuf::from(setting.path("run"));
    let last = folder.join("last.safetensors");
    let whole = fs::read(&last).expect("a checkpoint");
    let middle = whole.len() * 2 / 3;
    let mut flipped = whole.clone();
    flipped[middle] ^= 1;
    for (damage, bytes) in
        [("one bit flipped", flipped), ("cut short", whole[..middle].to_vec()), ("emptied", Vec::new())]
    {
        fs::write(&last, bytes).expect("damaged");
        let before = files(&folder);
        let message = error(&words(&setting.resume("run")));
        assert!(message.contains("last.safetensors"), "{damage}: {message}");
        assert!(files(&folder) == before, "{damage}: the run folder changed");
    }
    fs::remove_file(&last).expect("removed");
    let before = files(&folder);
    let message = error(&words(&setting.resume("run")));
    assert!(message.contains("last.safetensors") && message.contains("--resume"), "{message}");
    assert!(files(&folder) == before, "the run folder changed");

    let best = folder.join("best.safetensors");
    let mut bytes = fs::read(&best).expect("the best state");
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 0x10;
    fs::write(&best, bytes).expect("damaged");
    let input = setting.path("validation.jsonl");
    let message = error(&["predict", "--run", &setting.path("run"), "--input", &input]);
    assert!(message.contains("best.safetensors") && message.contains("damaged"), "{message}");
}

#[test]
fn a_run_whose_rows_changed_is_not_gone_on_with() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "3"])));
    let folder = PathBuf::from(setting.path("run"));
    let before = files(&folder);
    for (split, remedy) in [("training", "--initial-prompt"), ("validation", "train anew")] {
        let data = setting.path(&format!("{}.jsonl", split.trim_end_matches("ing")));
        let rows = fs::read_to_string(&data).expect("rows");
        let word = rows.split_once("film ").expect("a film").0.len();
        fs::write(&data, format!("{}play {}", &rows[..word], &rows[word + 5..])).expect("changed");
        let message = error(&words(&setting.resume("run")));
        assert!(message.contains(&format!("{split} rows")) && message.contains(remedy), "{message}");
        assert!(files(&folder) == before, "the run folder changed");
        fs::write(&data, rows).expect("put back");
    }
    success(&words(&setting.resume("run")));
}

#[test]
fn a_run_folder_of_another_version_is_named_with_its_version_and_left_alone() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "1"])));
    let folder = PathBuf::from(setting.path("run"));
    let json = fs::read_to_string(folder.join("run.json")).expect("settings");
    for (format, expected) in
        [("\"format\": 1", "format 1"), ("\"format\": 99", "format 99"), ("\"x\": 0", "none")]
    {
        fs::write(folder.join("run.json"), json.replace("\"format\": 2", format)).expect("written");
        let before = files(&folder);
        let message = error(&words(&setting.resume("run")));
        assert!(message.contains(expected) && message.contains("run.json"), "{message}");
        assert!(files(&folder) == before, "the run folder changed");
    }
    let nowhere = setting.path("nowhere");
    assert!(error(&["train", "--resume", "--out", &nowhere]).contains("run.json"));
    assert!(!Path::new(&nowhere).exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let setting = Setting::new();
    // The system's own folder of processes takes no files, whoever asks.
    let mut elsewhere = setting.train("run", &[]);
    let out = elsewhere.iter().position(|word| word == "--out").expect("a flag") + 1;
    elsewhere[out] = "/proc/run".into();
    let message = error(&words(&elsewhere));
    assert!(message.contains("could not create /proc/run"), "{message}");

    success(&words(&setting.train("run", &["--steps", "3"])));
    let folder = PathBuf::from(setting.path("run"));
    let before = files(&folder);
    set_mode(&folder, 0o555);
    // To root every folder is writable; another user is asked then.
    let mut resume = command_of_nobody(&folder).unwrap_or_else(|| command(&[]));
    let output = resume.args(setting.resume("run")).output().expect("the binary runs");
    set_mode(&folder, 0o755);
    let message = said(&output);
    assert!(!output.status.success() && message.contains("could not"), "{message}");
    assert!(message.contains("Permission denied") && !message.contains("panicked"), "{message}");
    assert!(files(&folder) == before, "the run folder changed");
}

/// The binary as a user without rights, if this one may write into the read-only `folder`.
fn command_of_nobody(folder: &Path) -> Option<Command> {
    fs::write(folder.join("probe"), "").ok()?;
    fs::remove_file(folder.join("probe")).expect("removed");
    set_mode(folder.parent().expect("the setting's folder"), 0o755);
    let mut command = program::without_gpu(Command::new("setpriv"));
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program::PATH]);
    Some(command)
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

/// To open a pipe would wait for its other end: one in the place of a run's file, or of its data, is refused by name, before it is opened.
#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
    let setting = Setting::new();
    let short = ["--steps", "2", "--validate-every", "2"];
    success(&words(&setting.train("whole", &short)));
    let (whole, run, out) = (setting.path("whole"), setting.path("run"), setting.path("report"));
    let resume = ["train", "--resume", "--steps", "4", "--out", &run];
    let evaluate = ["evaluate", "--run", &run];
    let report = ["report", &run, "--out", &out];
    let train = setting.train("new", &short);
    let train = words(&train);
    let (show, rows) = (setting.path("run/prompt.safetensors"), setting.path("train.jsonl"));
    let show = ["prompts", "show", &show];
    let predict = ["predict", "--run", &run, "--input", &rows];
    let mut cases: Vec<(&str, &[&str])> = vec![
        ("run/run.json", &predict[..]),
        ("run/run.json", &resume[..]),
        ("run/config.toml", &evaluate[..]),
        ("run/evaluation.json", &evaluate[..]),
        ("run/log.txt", &resume[..]),
        ("run/log.jsonl", &resume[..]),
        ("run/examples.jsonl", &resume[..]),
        ("run/last.safetensors", &resume[..]),
        ("run/best.safetensors", &evaluate[..]),
        ("run/prompt.safetensors", &resume[..]),
        ("run/prompt.safetensors", &show[..]),
        ("train.jsonl", &train[..]),
        ("validation.jsonl", &train[..]),
        ("train.jsonl", &predict[..]),
    ];
    if cfg!(feature = "report") {
        cases.push(("run/examples.jsonl", &report[..]));
    }
    for (file, arguments) in cases {
        let _ = fs::remove_dir_all(&run);
        fs::create_dir(&run).expect("a folder");
        for (name, bytes) in files(Path::new(&whole)) {
            fs::write(Path::new(&run).join(name), bytes).expect("copied");
        }
        let path = setting.path(file);
        let before = fs::read(&path).ok();
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let mut child =
            command(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
        let started = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait().expect("a status") {
                break Some(status);
            }
            if started.elapsed().as_secs() >= 120 {
                child.kill().expect("killed");
                break None;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let said = said(&child.wait_with_output().expect("an end"));
        assert!(ended.is_some(), "{arguments:?} waits for {file}");
        let refusal = format!("{path}: expected a file, found a pipe, a device or a socket");
        assert!(said.contains(&refusal), "{file} {arguments:?}: {said}");
        fs::remove_file(&path).expect("the pipe is gone");
        if let Some(bytes) = before {
            fs::write(&path, bytes).expect("put back");
        }
    }
}
