//! What a study reads, looked at before anything is trained: a wrong path of the last target would else come to light when all
//! others are done.

use std::collections::BTreeSet;
use std::path::Path;

use super::study::{Sources, Study};
use crate::config::RunConfig;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::prompts::Prompt;

impl Study {
    /// Looks at all that the study reads on this machine, but for targets whose results are in `out` already: source prompts, which
    /// must fit a model of this `width` and SHA-256 and be as long as the runs that take them say, and of each split its files and its
    /// first row. Data sets of the hub are not fetched for this.
    ///
    /// # Errors
    /// Those that the trainings would end with: of prompts, settings and data.
    pub fn check_inputs(&self, width: usize, model_sha256: Option<&str>, out: Option<&Path>) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut lengths = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            lengths.push(match &source.prompt {
                Some(path) => {
                    let prompt = Prompt::load(path)?;
                    prompt.check_fits(width, model_sha256)?;
                    prompt.length()
                }
                None => {
                    check_data(&source.config, &[Split::Train, Split::Validation], &mut seen)?;
                    source.config.prompt_length
                }
            });
        }
        if let Some(scorer) = &self.scorer {
            self.check_lengths("study.scorer", scorer, &Sources::All, &lengths)?;
        }
        let is_open = |out: &Path, target| self.finished(target, out).is_none();
        for target in self.targets.iter().filter(|target| out.is_none_or(|out| is_open(out, target))) {
            for (name, config, sources, _) in target.runs() {
                self.check_lengths(&name, config, sources, &lengths)?;
                check_data(config, &[Split::Train, Split::Validation, Split::Test], &mut seen)?;
            }
        }
        Ok(())
    }

    /// Refuses sources, of all of which `known` are the lengths, that the runs called `name` cannot take for their length.
    fn check_lengths(&self, name: &str, config: &RunConfig, taken: &Sources, known: &[usize]) -> Result<()> {
        let is_taken = |place: usize| match taken {
            Sources::None => false,
            Sources::Of(places) => places.contains(&place),
            Sources::All | Sources::Best | Sources::Each | Sources::Random => true,
        };
        let other = (0..known.len()).find(|&place| is_taken(place) && known[place] != config.prompt_length);
        let Some(place) = other else { return Ok(()) };
        Err(Error::setting(
            "prompt-length",
            format!("{}, the length of the source {}", known[place], self.sources[place].name),
            format!("{} for {name}", config.prompt_length),
            "sources and target prompt are mixed row by row and must be of one length",
        ))
    }
}

/// Looks at `splits` of the data of `config`, unless `seen` has them.
fn check_data(config: &RunConfig, splits: &[Split], seen: &mut BTreeSet<String>) -> Result<()> {
    let of_task = (&config.task, &config.template, &config.labels, &config.label_field);
    if !seen.insert(format!("{:?}", (of_task, &config.data, config.split_source(), splits))) {
        return Ok(());
    }
    crate::train::check_data(config, splits)
}
