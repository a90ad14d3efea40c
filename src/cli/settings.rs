//! The settings of a run as flags.

use std::ffi::OsString;

use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use toml::{Table, Value};

use crate::config::{SETTINGS, Setting, Values};

/// The settings that were given as flags, by their keys.
#[derive(Clone, Debug, Default)]
pub(super) struct SettingFlags(pub(super) Table);

/// The settings that say what a task's rows are and how they are answered, by their keys.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskFlags(pub(super) Table);

/// Their keys.
const OF_TASKS: [&str; 11] = [
    "task",
    "template",
    "labels",
    "label-field",
    "lowercase",
    "splits",
    "split-validation-test",
    "max-source-length",
    "max-target-length",
    "validation-rows",
    "decoding",
];

/// Flags whose text may begin with a hyphen: the label -1, a list's item.
const WITH_HYPHENS: [&str; 2] = ["template", "labels"];

/// A flag each of the settings of a task.
fn of_tasks() -> impl Iterator<Item = &'static Setting> {
    as_flags().filter(|setting| OF_TASKS.contains(&setting.key))
}

/// A flag each, but for the threads, which [`Device`](super::device::Device) has for every command.
fn as_flags() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|setting| setting.key != "threads")
}

fn flag(setting: &'static Setting) -> Arg {
    let help = format!("{} [default: {}]", setting.about, setting.default_value());
    let arg = Arg::new(setting.key).long(setting.key).aliases(setting.aliases).help(help);
    let arg = arg.help_heading(setting.section);
    match setting.values {
        Values::Switch => arg
            .value_parser(value_parser!(bool))
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Values::Whole(..) => arg.value_parser(value_parser!(i64).range(0..)),
        Values::Real(..) | Values::Portion | Values::Positive(_) => arg.value_parser(value_parser!(f64)),
        Values::Choice(choices) => {
            let values = choices.iter().map(|(name, about)| PossibleValue::new(name).help(about.trim()));
            arg.value_parser(PossibleValuesParser::new(values))
        }
        Values::Paths => {
            arg.value_delimiter(',').value_parser(NonEmptyStringValueParser::new()).action(ArgAction::Append)
        }
        _ => arg,
    }
}

/// The program's arguments, each value that begins with a hyphen tied to its flag by `=` where it may begin so: the parser would
/// take it for a flag, or, if it were told of such values, take the next flag for a value that was forgotten.
pub(super) fn with_hyphens(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut tied: Vec<OsString> = Vec::new();
    for argument in arguments {
        let is_value = argument.to_str().is_some_and(|text| text.starts_with('-') && !is_flag(text));
        let takes = |flag: &OsString| WITH_HYPHENS.iter().any(|key| *flag == *format!("--{key}"));
        match tied.last_mut().filter(|flag| is_value && takes(flag)) {
            Some(flag) => {
                flag.push("=");
                flag.push(argument);
            }
            None => tied.push(argument),
        }
    }
    tied
}

/// The parser's error, with the flag of today where its tip names an older name of one.
pub(super) fn with_names_of_today(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(tip)) = error.get(ContextKind::SuggestedArg) {
        let means = |setting: &&Setting| setting.aliases.iter().any(|alias| *tip == format!("--{alias}"));
        if let Some(setting) = as_flags().find(means) {
            error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{}", setting.key)));
        }
    }
    error
}

/// Whether an argument is written as flags are: `--few-shot`, `--few-shot=16`, `-h`.
fn is_flag(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default();
    let is_letter = |letter: char| letter.is_ascii_alphabetic();
    match name.strip_prefix("--") {
        Some(name) => {
            name.is_empty()
                || name.starts_with(is_letter)
                    && name.chars().all(|letter| is_letter(letter) || letter == '-')
        }
        None => name.len() == 2 && name.ends_with(is_letter),
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        as_flags().fold(command, |command, setting| command.arg(flag(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(as_flags().filter_map(|setting| given(setting, matches)));
        Ok(())
    }
}

impl Args for TaskFlags {
    fn augment_args(command: Command) -> Command {
        of_tasks().fold(command, |command, setting| command.arg(flag(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for TaskFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(of_tasks().filter_map(|setting| given(setting, matches)));
        Ok(())
    }
}

/// The key of a setting and its value, if its flag was given.
fn given(setting: &Setting, matches: &ArgMatches) -> Option<(String, Value)> {
    let key = setting.key;
    let text = || matches.get_one::<String>(key).map(|text| text.clone().into());
    let value = match setting.values {
        Values::Switch => matches.get_one::<bool>(key).map(|&value| value.into()),
        Values::Whole(..) => matches.get_one::<i64>(key).map(|&value| value.into()),
        Values::Real(..) | Values::Portion | Values::Positive(_) => {
            matches.get_one::<f64>(key).map(|&value| value.into())
        }
        Values::Paths => matches
            .get_many::<String>(key)
            .map(|paths| Value::Array(paths.map(|path| path.clone().into()).collect())),
        _ => text(),
    };
    value.map(|value| (key.to_owned(), value))
}
