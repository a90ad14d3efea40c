//! Where the data of each of several tasks lies, when one setting says it for all of them.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tasks::HubData;

/// The parts of `data` as it was given for `tasks` tasks: as many folders or data sets of the hub, separated by commas; else
/// itself. A folder whose own name has a comma stays whole.
pub fn data_parts(data: &str, tasks: usize) -> Vec<&str> {
    if tasks < 2 || !data.contains(',') || Path::new(data).is_dir() {
        return vec![data];
    }
    data.split(',').map(str::trim).collect()
}

/// The data of each of the tasks called `names`, in their order, as `data` says it for all of them: a folder of folders by the
/// tasks' names, `hub:owner/name` with a configuration a task by its name, `hub:` for each task's own data set, or a list with
/// commas of one folder, `hub:owner/name/configuration` or `hub:` a task. One task has all of `data`.
///
/// ```
/// use promptmix::data::data_of_tasks;
///
/// let places = data_of_tasks("hub:,reviews", &["sst2", "mine"])?;
/// assert_eq!(places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>(), ["hub:", "reviews"]);
/// # Ok::<(), promptmix::Error>(())
/// ```
///
/// # Errors
/// [`Error::Setting`] if a list has another number of entries than there are tasks, or an empty one.
pub fn data_of_tasks(data: &str, names: &[&str]) -> Result<Vec<PathBuf>> {
    let parts = data_parts(data, names.len());
    let unfit = |found: String| {
        let expected =
            format!("{} entries with commas between, one a task: {}", names.len(), names.join(", "));
        let advice = "each is a folder, hub:owner/name/configuration, or hub: for the task's own data set";
        Err(Error::setting("--data", expected, found, advice))
    };
    match parts.as_slice() {
        [whole] if names.len() < 2 => Ok(names.iter().map(|_| PathBuf::from(whole)).collect()),
        [whole] if HubData::is_own(whole) => Ok(names.iter().map(|_| PathBuf::from(whole)).collect()),
        [whole] => Ok(names.iter().map(|name| in_folder(whole, name)).collect()),
        parts if parts.len() != names.len() => unfit(format!("{} in {data:?}", parts.len())),
        parts if parts.contains(&"") => unfit(format!("an empty one in {data:?}")),
        parts => Ok(parts.iter().map(PathBuf::from).collect()),
    }
}

/// The data of the task called `name`, one of `names`: its part of [`data_of_tasks`].
///
/// # Errors
/// As there, and if `name` is none of `names`.
pub fn data_of_task(data: &Path, names: &[&str], name: &str) -> Result<PathBuf> {
    let Some(written) = data.to_str() else {
        return Ok(if names.len() < 2 { data.to_owned() } else { data.join(name) });
    };
    let place = names.iter().position(|other| *other == name);
    let place = place.ok_or_else(|| Error::setting("--task", names.join(", "), name, ""))?;
    Ok(data_of_tasks(written, names)?.swap_remove(place))
}

/// Refuses `data` where it is to be the folder of several tasks' folders and has none for `name`, one of `names`.
///
/// # Errors
/// [`Error::Setting`] that says what is there.
#[cfg(feature = "training")]
pub(crate) fn refuse_without(data: &Path, names: &[&str], name: &str) -> Result<()> {
    if names.len() < 2 || !data.is_dir() || data.join(name).exists() {
        return Ok(());
    }
    let (all, whole) = (names.join(", "), data.display());
    let expected = format!("a folder for each of the tasks, {all}, in {whole}");
    let found = format!("none for {name}, {}", super::folder::listing(data));
    let advice =
        format!("give one place a task with commas between, or name one task: --task {name} --data {whole}");
    Err(Error::setting("--data", expected, found, advice))
}

/// `data` of so many tasks, each part of it that is a path of this machine where `place` has it.
#[cfg(feature = "training")]
pub(crate) fn moved_places(data: &Path, tasks: usize, mut place: impl FnMut(&Path) -> PathBuf) -> PathBuf {
    let Some(written) = data.to_str() else { return place(data) };
    let parts = data_parts(written, tasks).into_iter().map(|part| match part {
        "" => PathBuf::new(),
        hub if hub.starts_with("hub:") => hub.into(),
        folder => place(Path::new(folder)),
    });
    parts.map(PathBuf::into_os_string).collect::<Vec<_>>().join(std::ffi::OsStr::new(",")).into()
}

/// The folder called `name` in `whole`; of a data set of the hub before the revision.
fn in_folder(whole: &str, name: &str) -> PathBuf {
    match whole.split_once('@').filter(|_| whole.starts_with("hub:")) {
        Some((place, revision)) => PathBuf::from(format!("{place}/{name}@{revision}")),
        None => Path::new(whole).join(name),
    }
}
