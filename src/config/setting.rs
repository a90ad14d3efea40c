//! What is known of a setting, and the declaration that all of it comes from.

use std::path::PathBuf;

use crate::backend::Scorer;
use crate::choice::Choice;
use crate::data::SplitSource;

/// A setting: a key in files, and with `--` before it a flag.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// Keys of older versions that still mean it.
    pub aliases: &'static [&'static str],
    /// Where it stands among others.
    pub section: &'static str,
    /// What it is, a sentence or more.
    pub about: &'static str,
    /// What it may be.
    pub values: Values,
    /// What holds where it is not given, if that is no single value.
    pub otherwise: Option<&'static str>,
}

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Values {
    /// Any text.
    Text,
    /// A path.
    Path,
    /// Paths.
    Paths,
    /// True or false.
    Switch,
    /// A whole number from the first to the second.
    Whole(u64, u64),
    /// A number from the first to the second.
    Real(f64, f64),
    /// A number from 0 to below 1.
    Portion,
    /// A number above 0, up to this.
    Positive(f64),
    /// One of these names; what each means stands beside it.
    Choice(&'static [(&'static str, &'static str)]),
}

impl Values {
    /// What is expected, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Path => "a path".into(),
            Self::Paths => "a list of paths".into(),
            Self::Switch => "true or false".into(),
            Self::Whole(least, u64::MAX) => format!("{least} or more"),
            Self::Whole(least, most) => format!("{least} to {most}"),
            Self::Real(least, f64::MAX) => format!("{least} or more"),
            Self::Real(least, most) => format!("{least} to {most:e}"),
            Self::Portion => "0 up to below 1".into(),
            Self::Positive(f64::MAX) => "above 0".into(),
            Self::Positive(most) => format!("above 0, up to {most:e}"),
            Self::Choice(choices) => choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        }
    }
}

/// A type that a setting's value can have.
pub(super) trait Value {
    /// The value for an error, if it is a number outside of `values`.
    fn outside(&self, values: &Values) -> Option<String>;
}

impl Value for u64 {
    fn outside(&self, values: &Values) -> Option<String> {
        let Values::Whole(least, most) = values else { return None };
        (!(least..=most).contains(&self)).then(|| self.to_string())
    }
}

impl Value for usize {
    fn outside(&self, values: &Values) -> Option<String> {
        (*self as u64).outside(values)
    }
}

impl Value for f64 {
    fn outside(&self, values: &Values) -> Option<String> {
        let holds = match *values {
            Values::Real(least, most) => (least..=most).contains(self),
            Values::Portion => (0.0..1.0).contains(self),
            Values::Positive(most) => *self > 0.0 && *self <= most,
            _ => true,
        };
        (!holds).then(|| self.to_string())
    }
}

impl<T: Value> Value for Option<T> {
    fn outside(&self, values: &Values) -> Option<String> {
        self.as_ref()?.outside(values)
    }
}

/// Values that their type already holds to what they may be.
macro_rules! unbounded {
    ($($kind:ty),+) => { $(impl Value for $kind {
        fn outside(&self, _: &Values) -> Option<String> {
            None
        }
    })+ };
}
unbounded!(String, PathBuf, Vec<PathBuf>, bool, Scorer, SplitSource);
unbounded!(
    super::Method,
    super::Preset,
    super::PromptInit,
    super::LrScheduler,
    super::Decoding,
    super::Sampling
);

/// The names of a choice.
pub(super) const fn choice<C: Choice>() -> Values {
    Values::Choice(C::CHOICES)
}

/// Declares the settings: the struct that holds them, its default, and a [`Setting`] each.
///
/// A line is `name: type = default, values;`. The key is the name with `-` for `_`. `else "text"` says what holds where the
/// default is none, and `was "key"` what it was called before.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident;
        $($section:literal {
            $($(#[doc = $doc:literal])+
            $field:ident: $kind:ty = $default:expr, $values:expr
                $(, else $otherwise:literal)? $(, was $($alias:literal),+)?;)+
        })+
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        #[non_exhaustive]
        pub struct $name {
            $($($(#[doc = $doc])+ $($(#[serde(alias = $alias)])+)? pub $field: $kind,)+)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($($field: $default,)+)+ }
            }
        }

        /// Every setting, in the order of the struct.
        pub static SETTINGS: &[Setting] = &[$($(Setting {
            key: {
                const KEY: [u8; stringify!($field).len()] = kebab(stringify!($field));
                match std::str::from_utf8(&KEY) {
                    Ok(key) => key,
                    Err(_) => stringify!($field),
                }
            },
            aliases: &[$($($alias),+)?],
            section: $section,
            about: concat!($($doc),+).trim_ascii(),
            values: $values,
            otherwise: settings!(@otherwise $($otherwise)?),
        },)+)+];

        impl $name {
            /// Each setting whose value is not one that it may have, with the value.
            pub(super) fn outside(&self) -> impl Iterator<Item = (&'static Setting, String)> {
                let found = [$($(self.$field.outside(&$values),)+)+];
                SETTINGS.iter().zip(found).filter_map(|(setting, found)| Some((setting, found?)))
            }
        }
    };
    (@otherwise $text:literal) => { Some($text) };
    (@otherwise) => { None };
}
pub(super) use settings;

/// `name` with `-` for `_`.
pub(super) const fn kebab<const N: usize>(name: &str) -> [u8; N] {
    let mut key = [0; N];
    let mut at = 0;
    while at < N {
        let letter = name.as_bytes()[at];
        key[at] = if letter == b'_' { b'-' } else { letter };
        at += 1;
    }
    key
}
