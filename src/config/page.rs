//! `docs/config.md`, written from the declaration.

use std::fmt::Write as _;

use super::{SETTINGS, Setting, Values};

/// The page that describes every setting: `docs/config.md`.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         A setting is a key of a TOML file for `promptmix train --config` (`learning-rate = 0.3`), a flag of `promptmix train`\n\
         (`--learning-rate 0.3`), and a column of a sweep or a study. Flags win over the file. A run's own settings are\n\
         `config.toml` in its folder. Keys of older versions go on working; they stand in brackets.\n\n\
         `--device` and `--precision` are flags of every command that computes and no settings, since settings say what is computed and\n\
         not where. `run.json` records what a run is trained on (`trained-on`: device and number format). With `--device auto`, the\n\
         default, a run goes on on that: by `--resume`, and by the same `sweep`, `compare` or `demo --study` again. Where there is no such\n\
         device the command ends with an error. `--device cpu` and `--device cuda` move runs, and say so. Runs of older versions, which did\n\
         not record it, go on on the CPU.\n\n\
         `promptmix` writes this page from the declaration of the settings in `src/config/declared.rs`.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        if setting.section != section {
            section = setting.section;
            // Writing to a string cannot fail.
            let _ = write!(page, "\n## {section}\n\n| key | default | values | |\n|---|---|---|---|\n");
        }
        let older: String = setting.aliases.iter().map(|alias| format!(" (`{alias}`)")).collect();
        let _ = writeln!(
            page,
            "| `{}`{older} | {} | {} | {} |",
            setting.key,
            setting.default_value(),
            setting.values.describe(),
            setting.about
        );
    }
    page.push_str("\n## Choices\n");
    for setting in SETTINGS {
        if let Values::Choice(choices) = setting.values {
            let _ = write!(page, "\n`{}`:\n\n", setting.key);
            for (name, about) in choices {
                let _ = writeln!(page, "- `{name}`: {}", about.trim());
            }
        }
    }
    page
}

impl Setting {
    /// What holds where the setting is not given, for people.
    pub fn default_value(&self) -> String {
        match (self.otherwise, toml::Table::try_from(super::RunConfig::default())) {
            (Some(otherwise), _) => otherwise.to_owned(),
            (None, Ok(defaults)) => defaults.get(self.key).map_or_else(String::new, |value| {
                value.as_str().map_or_else(|| value.to_string(), str::to_owned)
            }),
            (None, Err(_)) => String::new(),
        }
    }
}
