//! Where a task's data lies on the hub: `nyu-mll/glue/sst2`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::row::quote;
use crate::error::{Error, Result};

/// What stands before an address on the hub where a folder may stand too.
const SCHEME: &str = "hub:";

/// A data set of the hub, one of its configurations, and a revision of it: `owner/name/configuration@revision`, of which the
/// configuration and the revision can be left out.
///
/// ```
/// use promptmix::tasks::HubData;
///
/// let hub: HubData = "ybisk/piqa/plain_text@refs/convert/parquet".parse()?;
/// assert_eq!((hub.id.as_str(), hub.configuration.as_deref()), ("ybisk/piqa", Some("plain_text")));
/// assert_eq!(hub.address(), "hub:ybisk/piqa/plain_text@refs/convert/parquet");
/// # Ok::<(), promptmix::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HubData {
    /// The data set: `owner/name`.
    pub id: String,
    /// The configuration, which is also the folder that its files lie in; `None` where the data set has one alone.
    pub configuration: Option<String>,
    /// A branch, a tag or a commit; the default branch for `None`, or where that has no files of rows the data set's Parquet
    /// conversion.
    pub revision: Option<String>,
}

impl HubData {
    /// As `--data` takes it.
    pub fn address(&self) -> String {
        format!("{SCHEME}{self}")
    }

    /// The data set of the hub that `data` names as `--data` takes it; `None` if it is a folder, or names none.
    pub(super) fn at(data: &str) -> Option<Self> {
        data.strip_prefix(SCHEME)?.parse().ok()
    }

    /// Whether `data` stands for a task's own data on the hub: `hub:` with nothing after it.
    pub fn is_own(data: &str) -> bool {
        data == SCHEME
    }
}

impl FromStr for HubData {
    type Err = Error;

    fn from_str(written: &str) -> Result<Self> {
        let unfit = |advice: &str| {
            let expected = "owner/name, owner/name/configuration or either with @revision";
            Error::setting("hub", expected, quote(written), advice)
        };
        let (place, revision) = match written.split_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (written, None),
        };
        let parts: Vec<&str> = place.split('/').collect();
        let usable = |part: &&str| !part.is_empty() && !part.contains([' ', ':']);
        if !parts.iter().all(usable) || revision.is_some_and(str::is_empty) {
            return Err(unfit("check the id"));
        }
        match parts.as_slice() {
            [owner, name, configuration @ ..] => Ok(Self {
                id: format!("{owner}/{name}"),
                configuration: (!configuration.is_empty()).then(|| configuration.join("/")),
                revision: revision.map(str::to_owned),
            }),
            _ => Err(unfit("name the owner too")),
        }
    }
}

impl fmt::Display for HubData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.id)?;
        if let Some(configuration) = &self.configuration {
            write!(formatter, "/{configuration}")?;
        }
        match &self.revision {
            Some(revision) => write!(formatter, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for HubData {
    type Error = Error;

    fn try_from(written: String) -> Result<Self> {
        written.parse()
    }
}

impl From<HubData> for String {
    fn from(hub: HubData) -> Self {
        hub.to_string()
    }
}
