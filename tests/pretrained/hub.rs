//! Models by name. The hub is a server in this process; as the environment decides what is asked, each case runs in a
//! process of its own: this test binary again, with one test that does nothing unless it is told the case.

const CASE: &str = "PROMPTMIX_TEST_LOCATE";

/// Prints where the model lies, when started by another test.
#[test]
fn locate_in_this_environment() {
    if let Ok(model) = std::env::var(CASE) {
        let found = match model.starts_with("hub:") {
            true => promptmix::pretrained::locate_data(model.as_ref(), &promptmix::data::is_split_file),
            false => promptmix::pretrained::locate(&model),
        };
        match found {
            Ok(path) => println!("located: {}", path.display()),
            Err(error) => println!("refused: {error}"),
        }
    }
}

/// What [`promptmix::pretrained::locate`] says in an environment that holds only these variables.
fn locate(model: &str, environment: &[(&str, &str)]) -> Result<String, String> {
    let binary = std::env::current_exe().expect("this binary");
    let mut command = std::process::Command::new(binary);
    command.args(["hub::locate_in_this_environment", "--exact", "--nocapture"]).env_clear().env(CASE, model);
    command.envs(environment.iter().copied());
    let output = command.output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |mark: &str| {
        text.split_once(mark).map(|(_, rest)| rest.lines().next().unwrap_or_default().to_owned())
    };
    match (after("located: "), after("refused: ")) {
        (Some(path), None) => Ok(path),
        (None, Some(error)) => Err(error),
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
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use promptmix::data::{Split, Splits};
    use promptmix::pretrained::Checkpoint;
    use promptmix::tasks::SplitRule;
    use safetensors::Dtype;
    use sha2::{Digest, Sha256};
    use tempfile::tempdir;

    use super::locate;
    use crate::tiny_checkpoint as tiny;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub with one model, `owner/tiny`. It ends with the process.
    struct Hub {
        endpoint: String,
        /// Paths that were asked for.
        asked: Arc<Mutex<Vec<String>>>,
        files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    }

    impl Hub {
        fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
            let hub = Self { endpoint, asked: Arc::default(), files: Arc::new(Mutex::new(files)) };
            let (asked, files) = (hub.asked.clone(), hub.files.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (asked, files) = (asked.clone(), files.clone());
                    std::thread::spawn(move || answer(stream, &asked, &files));
                }
            });
            hub
        }

        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.asked.lock().expect("unpoisoned"))
        }
    }

    fn answer(
        mut stream: TcpStream,
        asked: &Mutex<Vec<String>>,
        files: &Mutex<BTreeMap<String, Vec<u8>>>,
    ) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
            let path = line.split(' ').nth(1)?.to_owned();
            let mut from = 0;
            let mut authorised = String::new();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).ok()?;
                let header = header.trim();
                if header.is_empty() {
                    break;
                }
                let (key, value) = header.split_once(": ")?;
                match key.to_ascii_lowercase().as_str() {
                    "range" => from = value.strip_prefix("bytes=")?.split('-').next()?.parse().ok()?,
                    "authorization" => authorised = format!(" {value}"),
                    _ => {}
                }
            }
            asked.lock().ok()?.push(format!("{path}{authorised}"));
            let files = files.lock().ok()?.clone();
            let file = path
                .strip_prefix("/datasets")
                .unwrap_or(&path)
                .strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/"))
                .and_then(|name| files.get(name));
            let revisions =
                ["main", COMMIT].map(|revision| format!("/api/datasets/owner/tiny/revision/{revision}"));
            let asks_about = path == "/api/models/owner/tiny/revision/main" || revisions.contains(&path);
            let (status, headers, body) = if asks_about {
                let siblings: Vec<_> =
                    files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
                let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
                ("200 OK", String::new(), info.into_bytes())
            } else if let Some(file) = file {
                let etag: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
                let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
                let headers =
                    format!("Content-Range: {range}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
                ("206 Partial Content", headers, file[from..].to_vec())
            } else {
                ("404 Not Found", String::new(), b"Entry not found".to_vec())
            };
            let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(&body).ok()?;
        }
    }

    fn files() -> BTreeMap<String, Vec<u8>> {
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
        let (hub, home) = (Hub::start(files()), tempdir().expect("folder"));
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
        let (hub, home) = (Hub::start(files), tempdir().expect("folder"));
        let home = home.path().to_str().expect("UTF-8");
        let online = [("HF_ENDPOINT", hub.endpoint.as_str()), ("HF_HOME", home)];
        let folder = locate("hub:owner/tiny/sst2", &online).expect("fetched");
        let splits = Splits::open(Path::new(&folder), SplitRule::Files, false).expect("splits");
        assert_eq!(splits.get(Split::Train).expect("both shards").row_count().expect("counted"), 2);
        assert_eq!(splits.get(Split::Validation).expect("there").row_count().expect("counted"), 1);
        let asked = hub.asked();
        assert!(!asked.iter().any(|path| path.contains("README") || path.contains("rte")), "{asked:?}");

        assert_eq!(locate("hub:owner/tiny/sst2", &online), Ok(folder.clone()));
        assert!(hub.asked()[0].ends_with(COMMIT), "the version that is there, not a newer one");
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

    #[test]
    fn offline_without_a_cached_model_asks_nobody_and_says_so() {
        let (hub, home) = (Hub::start(files()), tempdir().expect("folder"));
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
        let (hub, home) = (Hub::start(files), tempdir().expect("folder"));
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
        let (hub, home) = (Hub::start(files), tempdir().expect("folder"));
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
        let hub = Hub::start(without_weights);
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
        let (hub, home) = (Hub::start(files()), tempdir().expect("folder"));
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
