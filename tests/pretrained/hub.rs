//! Models by name. The hub is a server in this process; as the environment decides what is asked, each case runs in a
//! process of its own: this test binary again, with one test that does nothing unless it is told the case.

const CASE: &str = "PROMPTMIX_TEST_LOCATE";

/// Prints where the model or the data lies and where data came from, when started by another test.
#[test]
fn locate_in_this_environment() {
    if let Ok(model) = std::env::var(CASE) {
        let found = match model.starts_with("hub:") {
            true => promptmix::pretrained::find_data(model.as_ref(), &promptmix::data::is_split_file)
                .map(|found| (found.folder, found.origin.expect("what the hub has"))),
            false => promptmix::pretrained::locate(&model).map(|folder| (folder, String::new())),
        };
        match found {
            Ok((path, origin)) => println!("located: {}\norigin: {origin}", path.display()),
            Err(error) => println!("refused: {error}"),
        }
    }
}

/// What [`promptmix::pretrained::locate`] says in an environment that holds only these variables.
fn locate(model: &str, environment: &[(&str, &str)]) -> Result<String, String> {
    located(model, environment).map(|(folder, _)| folder)
}

/// The folder and the line about where it came from, as of [`locate`].
fn located(model: &str, environment: &[(&str, &str)]) -> Result<(String, String), String> {
    let binary = std::env::current_exe().expect("this binary");
    let mut command = std::process::Command::new(binary);
    command.args(["hub::locate_in_this_environment", "--exact", "--nocapture"]).env_clear().env(CASE, model);
    command.envs(environment.iter().copied());
    let output = command.output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |mark: &str| {
        text.split_once(mark).map(|(_, rest)| rest.lines().next().unwrap_or_default().to_owned())
    };
    match (after("located: "), after("origin: "), after("refused: ")) {
        (Some(path), Some(origin), None) => Ok((path, origin)),
        (None, None, Some(error)) => Err(error),
        _ => panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn a_folder_is_itself_and_a_file_or_nonsense_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let name = folder.path().to_str().expect("UTF-8");
    assert_eq!(promptmix::pretrained::locate(name).expect("a folder"), folder.path());
    let file = folder.path().join("model.safetensors");
    std::fs::write(&file, b"").expect("written");
    let error = promptmix::pretrained::locate(file.to_str().expect("UTF-8")).expect_err("a file");
    assert!(error.to_string().contains("which is a file"), "{error}");
    for name in ["", "/no/such/folder", "a/b/c", "../up", "owner/..", "owner/", "a b", "owner/na\nme", "-x/y"]
    {
        let error = promptmix::pretrained::locate(name).expect_err(name);
        assert!(error.to_string().contains("neither"), "{name}: {error}");
    }
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature_an_id_says_what_to_do() {
    let error = locate("owner/tiny", &[]).expect_err("no hub");
    assert!(error.contains("feature `hub`"), "{error}");
}

#[cfg(feature = "hub")]
mod served {
    use std::collections::BTreeMap;
    use std::path::Path;

    use promptmix::data::{Split, SplitSource, Splits};
    use promptmix::pretrained::Checkpoint;
    use promptmix::tasks::SplitRule;
    use safetensors::Dtype;
    use sha2::{Digest, Sha256};
    use tempfile::tempdir;

    use super::{locate, located};
    use crate::stand_in_hub::{Files, StandInHub, commit_of_data};
    use crate::tiny_checkpoint as tiny;

    /// A hub with one model, `owner/tiny`.
    fn with_model(files: Files) -> StandInHub {
        let hub = StandInHub::start();
        hub.model("owner/tiny", files);
        hub
    }

    /// A hub with one data set, `owner/tiny`.
    fn with_data(files: Files) -> StandInHub {
        let hub = StandInHub::start();
        hub.data_set("owner/tiny", "main", files);
        hub
    }

    fn files() -> Files {
        let config = tiny::config();
        let weights = tiny::safetensors_bytes(&tiny::tensors(&config), Dtype::F32);
        BTreeMap::from([
            ("config.json".to_owned(), tiny::config_json(&config).into_bytes()),
            ("model.safetensors".to_owned(), weights),
            ("tokenizer.json".to_owned(), b"{}".to_vec()),
            ("README.md".to_owned(), b"not asked for".to_vec()),
            ("tf_model.h5".to_owned(), vec![0; 1000]),
        ])
    }

    #[test]
    fn an_id_is_fetched_once_and_then_read_from_the_cache_without_the_network() {
        let (hub, home) = (with_model(files()), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        let online = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home), ("HF_TOKEN", "secret")];
        let folder = locate("owner/tiny", &online).expect("fetched");
        assert!(Path::new(&folder).starts_with(home), "{folder}");
        let checkpoint = Checkpoint::open(Path::new(&folder)).expect("a checkpoint");
        assert_eq!(checkpoint.embedding().expect("read"), tiny::tensors(&tiny::config())["shared.weight"].1);
        let asked = hub.asked();
        assert!(asked.iter().all(|asked| asked.ends_with(" Bearer secret")), "{asked:?}");
        assert!(
            !asked.iter().any(|asked| asked.contains("README") || asked.contains("tf_model")),
            "{asked:?}"
        );

        // Now the cache alone answers: the same folder, and nobody is asked.
        assert_eq!(locate("owner/tiny", &online), Ok(folder.clone()));
        assert_eq!(locate("owner/tiny", &[("HF_HOME", home), ("HF_HUB_OFFLINE", "1")]), Ok(folder.clone()));
        let cache = format!("{home}/hub");
        assert_eq!(locate("owner/tiny", &[("HF_HUB_CACHE", &cache), ("HF_HUB_OFFLINE", "true")]), Ok(folder));
        assert_eq!(hub.asked(), Vec::<String>::new());
    }

    #[test]
    fn a_folder_of_a_data_set_is_fetched_and_its_first_version_stays() {
        let shard = |number: usize| format!("sst2/train-0000{number}-of-00002.jsonl");
        let row = |label: usize| format!("{{\"sentence\": \"s\", \"label\": {label}}}\n").into_bytes();
        let files = BTreeMap::from([
            (shard(0), row(0)),
            (shard(1), row(1)),
            ("sst2/validation.jsonl".to_owned(), row(1)),
            ("sst2/README.md".to_owned(), b"not asked for".to_vec()),
            ("rte/train.jsonl".to_owned(), b"not asked for".to_vec()),
        ]);
        let (hub, home) = (with_data(files), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        let online = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let folder = locate("hub:owner/tiny/sst2", &online).expect("fetched");
        let splits = Splits::open(Path::new(&folder), SplitRule::Files, false).expect("splits");
        assert_eq!(splits.get(Split::Train).expect("both shards").row_count().expect("counted"), 2);
        assert_eq!(splits.get(Split::Validation).expect("there").row_count().expect("counted"), 1);
        let asked = hub.asked();
        assert!(!asked.iter().any(|path| path.contains("README") || path.contains("rte")), "{asked:?}");

        assert_eq!(locate("hub:owner/tiny/sst2", &online), Ok(folder.clone()));
        assert!(
            hub.asked()[0].ends_with(&commit_of_data("owner/tiny", "main")),
            "the version that is there, not a newer one"
        );
        let offline = [("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
        assert_eq!(locate("hub:owner/tiny/sst2", &offline), Ok(folder));
        assert_eq!(hub.asked(), Vec::<String>::new());
        let error = locate("hub:owner/tiny/rte", &offline).expect_err("not fetched");
        assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
        let error = locate("hub:owner/tiny/wnli", &online).expect_err("no such folder");
        assert!(error.contains("wnli") && error.contains("rte/train.jsonl"), "{error}");
        for name in ["hub:", "hub:owner", "hub:owner/..", "hub:owner/tiny/../rte", "hub:/owner/tiny"] {
            let error = locate(name, &online).expect_err(name);
            assert!(error.contains("hub:owner/name"), "{name}: {error}");
        }
    }

    const CONVERSION: &str = "refs/convert/parquet";

    fn rows(count: usize) -> Vec<u8> {
        "{\"sentence\": \"s\", \"label\": 0}\n".repeat(count).into_bytes()
    }

    fn named(files: &[(&str, Vec<u8>)]) -> Files {
        files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect()
    }

    /// Training rows of a folder.
    fn training_rows(folder: &str) -> usize {
        let splits = Splits::open(Path::new(folder), SplitRule::Files, SplitSource::Hub).expect("splits");
        splits.get(Split::Train).expect("a file").row_count().expect("counted")
    }

    #[test]
    fn a_data_set_that_is_a_script_alone_is_read_from_its_conversion() {
        let hub = with_data(named(&[("README.md", b"a card".to_vec()), ("tiny.py", b"a script".to_vec())]));
        let files = named(&[
            ("plain_text/train/0000.jsonl", rows(2)),
            ("plain_text/train/0001.jsonl", rows(3)),
            ("plain_text/validation/0000.jsonl", rows(1)),
        ]);
        hub.data_set("owner/tiny", CONVERSION, files);
        let home = tempdir().expect("folder");
        let home = home.path().to_str().expect("UTF-8");
        let online = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let offline = [("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
        let (folder, origin) = located("hub:owner/tiny/plain_text", &online).expect("converted");
        assert_eq!(training_rows(&folder), 5, "both files, in order");
        let commit = commit_of_data("owner/tiny", CONVERSION);
        let said = format!("hub: owner/tiny/plain_text at {CONVERSION}, commit {}", &commit[..12]);
        assert!(
            origin.starts_with(&said) && origin.contains("the default branch has no such files"),
            "{origin}"
        );
        assert!(folder.contains(&commit), "{folder}");
        let asked = hub.asked();
        assert!(asked.iter().any(|path| path.ends_with("/revision/refs%2Fconvert%2Fparquet")), "{asked:?}");
        assert!(!asked.iter().any(|path| path.ends_with("tiny.py")), "{asked:?}");

        // Its one configuration needs no name, and the cache answers for both names.
        for name in ["hub:owner/tiny", "hub:owner/tiny/plain_text"] {
            assert_eq!(located(name, &online), Ok((folder.clone(), origin.clone())), "{name}");
            assert_eq!(located(name, &offline), Ok((folder.clone(), origin.clone())), "{name}");
        }
        // What was fetched first stays, though the default branch is given files.
        hub.data_set("owner/tiny", "main", named(&[("plain_text/train.jsonl", rows(9))]));
        assert_eq!(locate("hub:owner/tiny/plain_text", &online), Ok(folder));
        let fresh = tempdir().expect("folder");
        let fresh =
            [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", fresh.path().to_str().expect("UTF-8"))];
        let (folder, origin) = located("hub:owner/tiny/plain_text", &fresh).expect("the default branch");
        assert_eq!(training_rows(&folder), 9);
        let commit = commit_of_data("owner/tiny", "main");
        assert_eq!(origin, format!("hub: owner/tiny/plain_text at main, commit {}", &commit[..12]));
    }

    #[test]
    fn a_revision_after_the_folder_names_a_branch_or_a_commit() {
        let hub = with_data(named(&[("a/train.jsonl", rows(1))]));
        hub.data_set(
            "owner/tiny",
            "refs/pr/7",
            named(&[("a/train.jsonl", rows(7)), ("train.jsonl", rows(8))]),
        );
        hub.data_set("owner/tiny", CONVERSION, named(&[("a/train/0000.jsonl", rows(4))]));
        let home = tempdir().expect("folder");
        let home = home.path().to_str().expect("UTF-8");
        let online = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let offline = [("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
        let commit = commit_of_data("owner/tiny", "refs/pr/7");
        for (name, count, at) in [
            ("hub:owner/tiny/a", 1, "main"),
            ("hub:owner/tiny/a@refs/pr/7", 7, "refs/pr/7"),
            ("hub:owner/tiny@refs/pr/7", 8, "refs/pr/7"),
            ("hub:owner/tiny/a@refs/convert/parquet", 4, CONVERSION),
            (&format!("hub:owner/tiny/a@{commit}"), 7, &commit),
        ] {
            for environment in [&online[..], &offline[..]] {
                let (folder, origin) = located(name, environment).expect(name);
                assert_eq!(training_rows(&folder), count, "{name}");
                assert!(origin.contains(&format!(" at {at}, commit ")), "{name}: {origin}");
                assert!(!origin.contains("default branch"), "it was asked for: {origin}");
            }
        }
        let error = locate("hub:owner/tiny/a@nosuch", &online).expect_err("no such revision");
        assert!(error.contains("owner/tiny@nosuch") && error.contains("404"), "{error}");
        let error = locate("hub:owner/tiny/b@refs/pr/7", &online).expect_err("no such folder");
        assert!(
            error.contains("`b/`") && error.contains("a/train.jsonl, train.jsonl at refs/pr/7"),
            "{error}"
        );
        for name in
            ["hub:owner/tiny@", "hub:owner/tiny/a@../x", "hub:owner/tiny@a b", "hub:owner/tiny/@v", "hub:@v"]
        {
            let error = locate(name, &online).expect_err(name);
            assert!(error.contains("with @revision"), "{name}: {error}");
        }
    }

    #[test]
    fn a_data_set_without_files_of_rows_says_what_it_has() {
        let hub = with_data(named(&[("tiny.py", b"a script".to_vec())]));
        let home = tempdir().expect("folder");
        let online =
            [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home.path().to_str().expect("UTF-8"))];
        let error = locate("hub:owner/tiny", &online).expect_err("a script");
        assert!(error.contains("only tiny.py; no Parquet conversion of it"), "{error}");
        assert!(!error.contains("name a folder"), "there is none: {error}");
        let both = named(&[
            ("x/train/0000.jsonl", rows(1)),
            ("y/test/0000.jsonl", rows(1)),
            ("z/all/0.jsonl", rows(1)),
        ]);
        hub.data_set("owner/tiny", CONVERSION, both);
        for name in ["hub:owner/tiny", "hub:owner/tiny/w"] {
            let error = locate(name, &online).expect_err("which of the two?");
            assert!(
                error.contains("the folders x, y, z") && error.contains("name a folder"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn offline_without_a_cached_model_asks_nobody_and_says_so() {
        let (hub, home) = (with_model(files()), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        let offline = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
        let error = locate("owner/tiny", &offline).expect_err("nothing is cached");
        assert!(error.contains("HF_HUB_OFFLINE") && error.contains("config.json"), "{error}");
        assert_eq!(hub.asked(), Vec::<String>::new());
    }

    #[test]
    fn shards_and_a_sentencepiece_model_are_fetched_with_what_they_need() {
        let mut files = files();
        let weights = files.remove("model.safetensors").expect("there");
        files.remove("tokenizer.json");
        let map: serde_json::Map<String, serde_json::Value> = tiny::tensors(&tiny::config())
            .into_keys()
            .map(|name| (name, "model-00001-of-00001.safetensors".into()))
            .collect();
        let index = serde_json::json!({ "weight_map": map }).to_string();
        files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
        files.insert("model-00001-of-00001.safetensors".to_owned(), weights);
        files.insert("spiece.model".to_owned(), b"pieces".to_vec());
        for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
            files.insert(name.to_owned(), b"{}".to_vec());
        }
        let (hub, home) = (with_model(files), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        let environment = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let folder = locate("owner/tiny", &environment).expect("fetched");
        let folder = Path::new(&folder);
        Checkpoint::open(folder).expect("sharded");
        for name in ["spiece.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
        {
            assert!(folder.join(name).exists(), "{name}");
        }

        // A shard that went missing is noticed, offline named, online fetched again.
        std::fs::remove_file(folder.join("model-00001-of-00001.safetensors")).expect("removed");
        let error =
            locate("owner/tiny", &[("HF_HOME", home), ("HF_HUB_OFFLINE", "1")]).expect_err("incomplete");
        assert!(error.contains("model-00001-of-00001.safetensors"), "{error}");
        locate("owner/tiny", &environment).expect("fetched again");
        Checkpoint::open(folder).expect("whole again");
    }

    #[test]
    fn a_byt5_without_a_file_of_pieces_is_whole() {
        let mut files = files();
        files.remove("tokenizer.json");
        let class = br#"{"tokenizer_class": "ByT5Tokenizer"}"#;
        files.insert("tokenizer_config.json".to_owned(), class.to_vec());
        let (hub, home) = (with_model(files), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        let folder = locate("owner/tiny", &[("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)]);
        let offline = [("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
        assert_eq!(locate("owner/tiny", &offline), folder);
        let settings = Path::new(&folder.expect("fetched")).join("tokenizer_config.json");
        // Settings of another class need its pieces.
        std::fs::remove_file(&settings).expect("removed");
        std::fs::write(&settings, "{}").expect("written");
        let error = locate("owner/tiny", &offline).expect_err("no tokenizer");
        assert!(error.contains("spiece.model") && error.contains("no folder owner/tiny here"), "{error}");
    }

    #[test]
    fn what_the_hub_lacks_is_named() {
        let home = tempdir().expect("folder");
        let home = home.path().to_str().expect("UTF-8");
        let mut without_weights = files();
        without_weights.remove("model.safetensors");
        let hub = with_model(without_weights);
        let environment = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let error = locate("owner/tiny", &environment).expect_err("no weights");
        assert!(error.contains("model.safetensors") && error.contains("tf_model.h5"), "{error}");
        let error = locate("owner/other", &environment).expect_err("no such model");
        assert!(error.contains("404") && error.contains("owner/other"), "{error}");
        // Port 9 of this machine: nobody listens.
        let error = locate("owner/tiny", &[("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", home)]);
        assert!(error.expect_err("no server").contains("check the name and the network"));
    }

    #[test]
    fn a_damaged_transfer_is_noticed_and_not_kept() {
        let (hub, home) = (with_model(files()), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        // A part left behind by another, broken transfer: its content is not what the server would have sent.
        let weights = files()["model.safetensors"].clone();
        let hash: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
        let blobs = Path::new(home).join("hub/models--owner--tiny/blobs");
        std::fs::create_dir_all(&blobs).expect("made");
        std::fs::write(blobs.join(format!("{hash}.part")), b"other bytes").expect("written");
        let environment = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let error = locate("owner/tiny", &environment).expect_err("spliced");
        assert!(error.contains(&hash) && error.contains("run the command again"), "{error}");
        let folder = locate("owner/tiny", &environment).expect("a clean start");
        Checkpoint::open(Path::new(&folder)).expect("whole");
    }
}
