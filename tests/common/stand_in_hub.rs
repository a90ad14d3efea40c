//! A hub on this machine's loopback: models and data sets by id and revision, through the addresses that are asked of a hub. It
//! ends with the process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// Content by path.
pub type Files = BTreeMap<String, Vec<u8>>;
/// Files by repository (`models/owner/name` or `datasets/owner/name`) and revision.
type Repositories = BTreeMap<(String, String), Files>;

pub struct StandInHub {
    /// What `HF_ENDPOINT` is to be.
    pub endpoint: String,
    /// Paths that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
    repositories: Arc<Mutex<Repositories>>,
}

impl StandInHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let hub = Self { endpoint, asked: Arc::default(), repositories: Arc::default() };
        let (asked, repositories) = (hub.asked.clone(), hub.repositories.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, repositories) = (asked.clone(), repositories.clone());
                std::thread::spawn(move || answer(stream, &asked, &repositories));
            }
        });
        hub
    }

    /// Has `files` as the model `id`.
    pub fn model(&self, id: &str, files: Files) {
        self.put(format!("models/{id}"), "main", files);
    }

    /// Has `files` in a revision of the data set `id`, beside those that are there.
    pub fn data_set(&self, id: &str, revision: &str, files: Files) {
        self.put(format!("datasets/{id}"), revision, files);
    }

    fn put(&self, repository: String, revision: &str, files: Files) {
        let mut repositories = self.repositories.lock().expect("unpoisoned");
        repositories.entry((repository, revision.to_owned())).or_default().extend(files);
    }

    /// The paths that were asked for since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("unpoisoned"))
    }
}

/// The commit that `revision` of the data set `id` is.
pub fn commit_of_data(id: &str, revision: &str) -> String {
    commit(&format!("datasets/{id}"), revision)
}

fn commit(repository: &str, revision: &str) -> String {
    hash(format!("{repository}@{revision}").as_bytes())[..40].to_owned()
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(stream: TcpStream, asked: &Mutex<Vec<String>>, repositories: &Mutex<Repositories>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
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
        let response = respond(&path, from, &*repositories.lock().ok()?);
        stream.write_all(&response).ok()?;
    }
}

/// The response to a request for `path` from byte `from` on.
fn respond(path: &str, from: usize, repositories: &Repositories) -> Vec<u8> {
    let found = match path.strip_prefix("/api/") {
        Some(about) => about.split_once("/revision/").and_then(|(repository, revision)| {
            let (commit, files) = at(repositories, repository, revision)?;
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let about = serde_json::json!({ "sha": commit, "siblings": siblings }).to_string();
            Some(response("200 OK", "", about.as_bytes()))
        }),
        None => path.split_once("/resolve/").and_then(|(repository, file)| {
            let repository = repository.trim_start_matches('/');
            let kind = if repository.starts_with("datasets/") { "" } else { "models/" };
            let (revision, name) = file.split_once('/')?;
            let (commit, files) = at(repositories, &format!("{kind}{repository}"), revision)?;
            let file = files.get(name)?;
            let (last, length, tag) = (file.len() - 1, file.len(), hash(file));
            let headers = format!(
                "Content-Range: bytes {from}-{last}/{length}\r\nETag: \"{tag}\"\r\nX-Repo-Commit: {commit}\r\n"
            );
            Some(response("206 Partial Content", &headers, &file[from..]))
        }),
    };
    found.unwrap_or_else(|| response("404 Not Found", "", b"Entry not found"))
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The commit and the files of a repository's revision, which may be named by its commit; slashes in it are written as `%2F`.
fn at<'a>(repositories: &'a Repositories, repository: &str, revision: &str) -> Option<(String, &'a Files)> {
    let revision = revision.replace("%2F", "/");
    repositories.iter().find_map(|((name, branch), files)| {
        let commit = commit(name, branch);
        (name == repository && (*branch == revision || commit == revision)).then_some((commit, files))
    })
}
