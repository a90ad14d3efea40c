//! Finding a model or a data set by name: a folder on this machine, or an id on the hub, fetched once into the cache that
//! Python's tools use too.
//!
//! Not for reading it: what is found is a folder for [`super::Checkpoint`] and [`super::Tokenizer`], or one of rows.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder of `model`: itself if it is one, else the hub's model of that id (`owner/name`), from the cache if all of
/// it is there, else fetched.
///
/// Environment: `HF_ENDPOINT` (another hub or a mirror), `HF_HUB_CACHE` or `HF_HOME` (where the cache lies), `HF_TOKEN`
/// (for private models), `HF_HUB_OFFLINE=1` (never ask the network). A cached model is not checked for a newer version.
///
/// # Errors
/// [`Error::Setting`] if `model` is neither a folder nor an id, or is not in the cache while offline;
/// [`Error::File`] if it cannot be fetched; [`Error::Unsupported`] for an id in a build without the feature `hub`.
pub fn locate(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    match path.metadata() {
        Ok(_) => {
            return Err(Error::setting(
                "model",
                "the folder of a checkpoint",
                format!("{model}, which is a file"),
                "give the folder that holds config.json and the weights",
            ));
        }
        // What is there and cannot be opened is not asked of the hub.
        Err(error) if path.is_symlink() || error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(Error::file("open", path, error));
        }
        Err(_) => {}
    }
    if !is_id(model) {
        return Err(Error::setting(
            "model",
            "a folder, or a hub id such as owner/name",
            format!("`{}`, which is neither", model.escape_debug()),
            "check the path",
        ));
    }
    fetch(model)
}

/// A folder of data and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundData {
    /// Where the files lie on this machine.
    pub folder: PathBuf,
    /// One line for people on what of the hub they are: the data set, its revision and commit. `None` for a folder that was given.
    pub origin: Option<String>,
}

/// The folder of `data`, as [`find_data`] finds it.
///
/// # Errors
/// As there.
pub fn locate_data(data: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<PathBuf> {
    find_data(data, wanted).map(|found| found.folder)
}

/// The folder of `data`: itself, or of `hub:owner/name` and `hub:owner/name/folder` that folder of the hub's data set, of which
/// the files whose path `wanted` accepts are fetched. `@revision` after either names a branch, a tag or a commit, as in
/// `hub:owner/name/folder@refs/convert/parquet`. Without it the default branch counts, and where that has no such files the hub's
/// own Parquet conversion of the data set, in which the folders are the configurations; where that has one alone, it needs no
/// name. The version that was fetched first stays.
///
/// # Errors
/// [`Error::Setting`] if what follows `hub:` is no id, or is not in the cache while offline; [`Error::Format`] if the data set has
/// no such files; [`Error::File`] if it cannot be fetched; [`Error::Unsupported`] in a build without the feature `hub`.
pub fn find_data(data: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<FoundData> {
    let Some(address) = data.to_str().and_then(|data| data.strip_prefix("hub:")) else {
        return Ok(FoundData { folder: data.to_owned(), origin: None });
    };
    let (place, revision) = match address.split_once('@') {
        Some((place, revision)) => (place, Some(revision)),
        None => (address, None),
    };
    let parts: Vec<&str> = place.split('/').collect();
    let usable = |parts: &[&str]| parts.iter().all(|part| is_id(part));
    match parts.as_slice() {
        [owner, name, folder @ ..]
            if is_id(&format!("{owner}/{name}"))
                && usable(folder)
                && revision.is_none_or(|revision| usable(&revision.split('/').collect::<Vec<_>>())) =>
        {
            let (id, folder) = (format!("{owner}/{name}"), folder.join("/"));
            fetch_data(&Address { id: &id, folder: &folder, revision }, wanted)
        }
        _ => Err(Error::setting(
            "data",
            "hub:owner/name, hub:owner/name/folder, or either with @revision",
            format!("`{}`", data.display().to_string().escape_debug()),
            "check the id",
        )),
    }
}

/// What an address on the hub names.
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "nothing is fetched"))]
struct Address<'a> {
    id: &'a str,
    /// Empty for the data set's own.
    folder: &'a str,
    revision: Option<&'a str>,
}

/// Whether `model` may be the id of a model on the hub: a name, or `owner/name`.
pub fn is_hub_id(model: &str) -> bool {
    is_id(model)
}

/// Letters, digits, `-`, `_`, `.`, with one `/` at most; no part that is a step in a path.
fn is_id(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    let usable = |part: &&str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    parts.len() <= 2 && parts.iter().all(usable)
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &str) -> Result<PathBuf> {
    Err(Error::unsupported(
        format!("the hub id `{id}`"),
        "this build has no access to the hub, and there is no folder of that name",
        "fetch the model into a folder and give that, or build with the feature `hub`",
    ))
}

#[cfg(not(feature = "hub"))]
fn fetch_data(address: &Address<'_>, _: &dyn Fn(&str) -> bool) -> Result<FoundData> {
    Err(Error::unsupported(
        format!("the data set `{}`", address.id),
        "this build has no access to the hub",
        "fetch its files into a folder and give that, or build with the feature `hub`",
    ))
}

#[cfg(feature = "hub")]
use online::{fetch, fetch_data};

#[cfg(feature = "hub")]
mod online {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::path::{Component, Path, PathBuf};
    use std::sync::{Mutex, PoisonError};

    use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
    use hf_hub::{Cache, Repo, RepoType};
    use serde::Deserialize;
    use sha2::{Digest, Sha256};

    use super::{Address, FoundData};
    use crate::error::{Error, Result};
    use crate::panics::contained;
    use crate::pretrained::added_tokens::Additions;
    use crate::pretrained::small_file;

    /// Weights in the order in which a checkpoint looks for them; an index stands for the shards that it names.
    const WEIGHTS: [&str; 4] = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    const TOKENIZERS: [&str; 2] = ["tokenizer.json", "spiece.model"];
    const CONFIG: &str = "config.json";
    /// What a tokenizer adds to its vocabulary. A ByT5 has no other files of its tokenizer.
    const ADDED_TOKENS: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
    const INDEX_BYTES: u64 = 64 << 20;
    /// How often a broken transfer is resumed.
    const RETRIES: usize = 3;

    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }

    /// What the environment says about the hub.
    struct Settings {
        cache: PathBuf,
        endpoint: Option<String>,
        token: Option<String>,
        offline: bool,
    }

    impl Settings {
        fn from_environment() -> Result<Self> {
            let text = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
            let folder =
                |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
            let cache = folder("HF_HUB_CACHE")
                .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
                .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
                .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")));
            let cache = cache.ok_or_else(|| {
                Error::setting(
                    "HF_HOME",
                    "a folder for the cache of models",
                    "neither it nor a home folder",
                    "set HF_HOME, or give the model's folder",
                )
            })?;
            let offline = text("HF_HUB_OFFLINE").is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
            });
            let endpoint = text("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_owned());
            Ok(Self { cache, endpoint, token: text("HF_TOKEN"), offline })
        }
    }

    /// Held while something is looked up or fetched: trainings side by side ask for the same files, and a file is put into the cache
    /// once.
    static FETCHING: Mutex<()> = Mutex::new(());

    pub(super) fn fetch(id: &str) -> Result<PathBuf> {
        let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = Settings::from_environment()?;
        let cached = Cache::new(settings.cache.clone()).model(id.to_owned());
        let missing = match cached.get(CONFIG).as_deref().and_then(Path::parent) {
            None => CONFIG.to_owned(),
            Some(folder) => match missing_in(folder)? {
                None => return Ok(folder.to_owned()),
                Some(missing) => missing,
            },
        };
        if settings.offline {
            return Err(Error::setting(
                "model",
                format!("{id} in the cache {}, as HF_HUB_OFFLINE is set", settings.cache.display()),
                format!("no {missing}, and no folder {id} here"),
                "unset HF_HUB_OFFLINE once to fetch it, or give the folder of a checkpoint",
            ));
        }
        // The crate trusts what the server answers and panics where an answer contradicts the protocol.
        let fetched = contained(|| download(id, &settings));
        let folder =
            fetched.unwrap_or_else(|| Err(unreachable_hub(id, "an answer that is not the hub's")))?;
        // Only now does the name point to this version: an interrupted fetch is resumed, never taken for the whole.
        if let Some(commit) = folder.file_name().and_then(|name| name.to_str()) {
            cached.create_ref(commit).map_err(|source| Error::file("record", &folder, source))?;
        }
        Ok(folder)
    }

    /// The first file that a snapshot lacks, or `None` if it is complete.
    fn missing_in(folder: &Path) -> Result<Option<String>> {
        let is_of_bytes = || Additions::read(folder).is_ok_and(|additions| additions.is_of_bytes());
        if !TOKENIZERS.iter().any(|name| folder.join(name).exists()) && !is_of_bytes() {
            return Ok(Some(TOKENIZERS.join(" or ")));
        }
        let Some(weights) = WEIGHTS.into_iter().find(|name| folder.join(name).exists()) else {
            return Ok(Some(WEIGHTS.join(" or ")));
        };
        if weights.ends_with(".json") {
            let shards = shards(&folder.join(weights))?;
            return Ok(shards.into_iter().find(|shard| !folder.join(shard).exists()));
        }
        Ok(None)
    }

    /// The branch that counts where none is named.
    const MAIN: &str = "main";
    /// Where the hub keeps a data set converted to Parquet: a folder a configuration, in it a folder a split.
    const CONVERSION: &str = "refs/convert/parquet";
    /// Names that a message lists.
    const LISTED: usize = 20;

    /// What a look for files of rows came to.
    enum Looked {
        /// They are fetched.
        Found { commit: String, folder: String },
        /// The revision has other files alone: these.
        Without(Vec<String>),
        /// There is no such revision.
        NoRevision,
    }

    pub(super) fn fetch_data(address: &Address<'_>, wanted: &dyn Fn(&str) -> bool) -> Result<FoundData> {
        let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = Settings::from_environment()?;
        let repo = Repo::new(address.id.to_owned(), RepoType::Dataset);
        let root = settings.cache.join(repo.folder_name());
        let in_cache = |revision: &str| cached_data(&root, revision, address.folder);
        let revisions = match address.revision {
            Some(revision) => vec![revision],
            // What was fetched first stays, though the default branch may have files by now.
            None if in_cache(MAIN).is_none() && in_cache(CONVERSION).is_some() => vec![CONVERSION, MAIN],
            None => vec![MAIN, CONVERSION],
        };
        let found = |revision: &str, commit: &str, folder: &str| {
            let place =
                if folder.is_empty() { address.id.to_owned() } else { format!("{}/{folder}", address.id) };
            let why = match revision {
                CONVERSION if address.revision.is_none() => {
                    ", as the default branch has no such files that can be read"
                }
                _ => "",
            };
            let short = &commit[..commit.len().min(12)];
            FoundData {
                folder: root.join("snapshots").join(commit).join(folder),
                origin: Some(format!("hub: {place} at {revision}, commit {short}{why}")),
            }
        };
        if settings.offline {
            let cached = revisions.iter().find_map(|revision| Some((revision, in_cache(revision)?)));
            return cached.map(|(revision, (commit, folder))| found(revision, &commit, &folder)).ok_or_else(
                || {
                    Error::setting(
                        "data",
                        format!(
                            "{} in the cache {}, as HF_HUB_OFFLINE is set",
                            address.id,
                            settings.cache.display()
                        ),
                        "no files of it",
                        "unset HF_HUB_OFFLINE once to fetch it, or give a folder",
                    )
                },
            );
        }
        let mut looked_at = Vec::with_capacity(revisions.len());
        for revision in revisions {
            let version = version(&root, revision);
            let fetched = contained(|| download_data(address, revision, &version, wanted, &settings));
            match fetched
                .unwrap_or_else(|| Err(unreachable_hub(address.id, "an answer that is not the hub's")))?
            {
                Looked::Found { commit, folder } => {
                    // A commit needs no name.
                    if !is_commit(revision) {
                        let repo = Repo::with_revision(
                            address.id.to_owned(),
                            RepoType::Dataset,
                            revision.to_owned(),
                        );
                        let named = Cache::new(settings.cache.clone()).repo(repo).create_ref(&commit);
                        named.map_err(|source| Error::file("record", &root, source))?;
                    }
                    return Ok(found(revision, &commit, &folder));
                }
                other => looked_at.push((revision, other)),
            }
        }
        Err(nothing_found(address, &looked_at))
    }

    /// The commit that a revision was when it was fetched first; empty if it was not.
    fn version(root: &Path, revision: &str) -> String {
        match std::fs::read_to_string(root.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) if is_commit(revision) => revision.to_owned(),
            Err(_) => String::new(),
        }
    }

    fn is_commit(revision: &str) -> bool {
        revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// The commit and the folder of a revision, if the cache has that folder.
    fn cached_data(root: &Path, revision: &str, folder: &str) -> Option<(String, String)> {
        let commit = version(root, revision);
        let snapshot = root.join("snapshots").join(&commit);
        let folder = if folder.is_empty() && revision == CONVERSION {
            let folders: Vec<PathBuf> =
                std::fs::read_dir(&snapshot).ok()?.flatten().map(|entry| entry.path()).collect();
            let [only] = folders.iter().filter(|path| path.is_dir()).collect::<Vec<_>>()[..] else {
                return None;
            };
            only.file_name()?.to_str()?.to_owned()
        } else {
            folder.to_owned()
        };
        (!commit.is_empty() && snapshot.join(&folder).is_dir()).then_some((commit, folder))
    }

    /// Fetches the wanted files of `version`, or of the revision's newest if that is empty.
    fn download_data(
        address: &Address<'_>,
        revision: &str,
        version: &str,
        wanted: &dyn Fn(&str) -> bool,
        settings: &Settings,
    ) -> Result<Looked> {
        let id = address.id;
        let api = connect(id, settings)?;
        let at = |revision: &str| {
            api.repo(Repo::with_revision(id.to_owned(), RepoType::Dataset, revision.to_owned()))
        };
        let about = match at(if version.is_empty() { revision } else { version }).info() {
            Ok(about) => about,
            Err(error) if revision == CONVERSION && is_absent(&error) => return Ok(Looked::NoRevision),
            Err(error) if revision == MAIN => return Err(explain(id, &error)),
            Err(error) => return Err(explain(&format!("{id}@{revision}"), &error)),
        };
        check_commit(id, &about.sha)?;
        let all: Vec<&str> = about.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let of = |folder: &str| {
            let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
            let is_wanted = |file: &&&str| file.strip_prefix(below.as_str()).is_some_and(wanted);
            all.iter().filter(is_wanted).copied().collect::<Vec<&str>>()
        };
        let mut folder = address.folder;
        let mut files = of(folder);
        if files.is_empty() && folder.is_empty() && revision == CONVERSION {
            let configurations: BTreeSet<&str> =
                all.iter().filter_map(|file| Some(file.split_once('/')?.0)).collect();
            let with_rows: Vec<&str> =
                configurations.into_iter().filter(|name| !of(name).is_empty()).collect();
            if let [only] = with_rows[..] {
                (folder, files) = (only, of(only));
            }
        }
        if files.is_empty() {
            return Ok(Looked::Without(all.into_iter().map(str::to_owned).collect()));
        }
        let repo = at(&about.sha);
        for file in files {
            // A path out of the folder is not followed, whatever the server answers.
            let plain = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                return Err(unreachable_hub(id, &format!("the file name `{}`", file.escape_debug())));
            }
            get(id, &repo, file)?;
        }
        Ok(Looked::Found { commit: about.sha, folder: folder.to_owned() })
    }

    /// That none of the revisions has files of rows in the folder, with what they have.
    fn nothing_found(address: &Address<'_>, looked_at: &[(&str, Looked)]) -> Error {
        let (mut found, mut names_folder) = (Vec::new(), false);
        for (revision, looked) in looked_at {
            found.push(match looked {
                Looked::Without(files) if *revision == CONVERSION => {
                    let folders: BTreeSet<&str> =
                        files.iter().filter_map(|file| Some(file.split_once('/')?.0)).take(LISTED).collect();
                    names_folder |= !folders.is_empty();
                    let folders = folders.into_iter().collect::<Vec<_>>().join(", ");
                    format!("in its Parquet conversion, {CONVERSION}, the folders {folders}")
                }
                Looked::Without(files) => {
                    let mut known: Vec<&str> = files.iter().take(LISTED).map(String::as_str).collect();
                    known.sort_unstable();
                    names_folder |= files.iter().any(|file| file.contains('/'));
                    let of = if *revision == MAIN { String::new() } else { format!(" at {revision}") };
                    if known.is_empty() {
                        format!("no file{of}")
                    } else {
                        format!("only {}{of}", known.join(", "))
                    }
                }
                Looked::NoRevision | Looked::Found { .. } => "no Parquet conversion of it".to_owned(),
            });
        }
        let below = if address.folder.is_empty() { String::new() } else { format!("{}/", address.folder) };
        let advice = if names_folder {
            "name a folder of the data set, as in hub:owner/name/folder"
        } else {
            "choose a data set with files of rows, or fetch its rows into a folder and give that"
        };
        Error::format(
            address.id,
            None,
            format!("train, validation or test files in `{below}`"),
            found.join("; "),
            advice,
        )
    }

    fn connect(id: &str, settings: &Settings) -> Result<Api> {
        let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone())).with_retries(RETRIES);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if settings.token.is_some() {
            builder = builder.with_token(settings.token.clone());
        }
        builder.build().map_err(|error| unreachable_hub(id, &error.to_string()))
    }

    /// The commit becomes a folder's name, so it must be nothing else than a hash.
    fn check_commit(id: &str, commit: &str) -> Result<()> {
        if commit.len() >= 7 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(());
        }
        Err(unreachable_hub(id, "a version that is not a commit hash"))
    }

    fn download(id: &str, settings: &Settings) -> Result<PathBuf> {
        let api = connect(id, settings)?;
        let about = api.model(id.to_owned()).info().map_err(|error| explain(id, &error))?;
        check_commit(id, &about.sha)?;
        let files: BTreeSet<&str> = about.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        // Every file from this one commit, though the model may be changed meanwhile.
        let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, about.sha.clone()));
        let absent = |what: String| {
            Error::format(
                id,
                None,
                format!("a T5 checkpoint with {what}"),
                format!("only {}", files.iter().take(20).copied().collect::<Vec<_>>().join(", ")),
                "choose a model that offers PyTorch or safetensors weights",
            )
        };
        if !files.contains(CONFIG) {
            return Err(absent(CONFIG.to_owned()));
        }
        let weights = WEIGHTS.into_iter().find(|name| files.contains(name));
        let weights = weights.ok_or_else(|| absent(WEIGHTS.join(" or ")))?;
        let config = get(id, &repo, CONFIG)?;
        // The small files first: what is wrong with them should show before the long wait.
        if let Some(tokenizer) = TOKENIZERS.into_iter().find(|name| files.contains(name)) {
            get(id, &repo, tokenizer)?;
        }
        for name in ADDED_TOKENS.into_iter().filter(|name| files.contains(name)) {
            get(id, &repo, name)?;
        }
        let path = get(id, &repo, weights)?;
        if weights.ends_with(".json") {
            for shard in shards(&path)? {
                get(id, &repo, &shard)?;
            }
        }
        let folder = config.parent().map(Path::to_owned);
        folder.ok_or_else(|| unreachable_hub(id, "a file outside any folder"))
    }

    fn get(id: &str, repo: &ApiRepo, file: &str) -> Result<PathBuf> {
        let name = format!("{id}/{file}");
        let path = repo.get(file).map_err(|error| explain(&name, &error))?;
        check_hash(&name, &path)?;
        Ok(path)
    }

    /// Large files are stored under the SHA-256 of their content; one that was cut short or spliced does not have it,
    /// and is removed so that the next fetch starts anew.
    fn check_hash(name: &str, path: &Path) -> Result<()> {
        let blob = path.canonicalize().map_err(|source| Error::file("find", path, source))?;
        let expected = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(());
        }
        let mut hasher = Sha256::new();
        File::open(&blob)
            .and_then(|mut file| std::io::copy(&mut file, &mut hasher))
            .map_err(|source| Error::file("read", &blob, source))?;
        let found = format!("{:x}", hasher.finalize());
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        for stale in [path, &blob] {
            std::fs::remove_file(stale).map_err(|source| Error::file("remove", stale, source))?;
        }
        Err(Error::format(
            name,
            None,
            format!("content with the SHA-256 {expected}"),
            found,
            "the transfer was damaged; run the command again",
        ))
    }

    /// The files that an index names, each a plain name beside it.
    fn shards(index: &Path) -> Result<BTreeSet<String>> {
        let broken =
            |found: String| Error::format(index, None, "an index of shards", found, "fetch it again");
        let parsed: Index = serde_json::from_slice(&small_file(index, INDEX_BYTES)?)
            .map_err(|error| broken(error.to_string()))?;
        let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
        for name in &names {
            let mut components = Path::new(name).components();
            if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
                return Err(broken(format!("the file name `{}`", name.escape_debug())));
            }
        }
        Ok(names)
    }

    /// Whether the hub said that there is no such thing.
    fn is_absent(error: &ApiError) -> bool {
        error.to_string().ends_with("404")
    }

    fn explain(what: &str, error: &ApiError) -> Error {
        let said = error.to_string();
        if ["401", "403", "404"].iter().any(|status| said.ends_with(status)) {
            return unreachable_hub(
                what,
                &format!(
                    "{said}: there is nothing of that name, or it is private and HF_TOKEN does not open it"
                ),
            );
        }
        // The error keeps what the system said in its words alone: no access, no space, read-only, over the quota.
        if [13, 28, 30, 122].iter().any(|number| said.contains(&format!("(os error {number})"))) {
            let advice =
                "the hub's cache cannot be written: free space there, or name another folder by HF_HUB_CACHE";
            return Error::file("keep", what, std::io::Error::other(format!("{said} ({advice})")));
        }
        unreachable_hub(what, &said)
    }

    fn unreachable_hub(what: &str, said: &str) -> Error {
        let advice = "check the name and the network, or give a folder";
        Error::file("fetch from the hub", what, std::io::Error::other(format!("{said} ({advice})")))
    }
}
