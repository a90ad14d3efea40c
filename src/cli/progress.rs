//! Progress bars for people, plain lines where no terminal is.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::train::{Monitor, StepRecord, ValidationRecord};

/// A bar of `length` steps of `what`; hidden where standard error is no terminal.
pub(super) fn bar(length: u64, what: &'static str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed}<{eta} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_prefix(what);
    bar
}

/// Shows a training run.
pub(super) struct Shown {
    training: ProgressBar,
    validation: ProgressBar,
}

impl Shown {
    pub(super) fn new() -> Self {
        Self { training: bar(0, "training"), validation: ProgressBar::hidden() }
    }

    fn say(&self, text: &str) {
        if self.training.is_hidden() {
            eprintln!("{text}");
        } else {
            self.training.suspend(|| eprintln!("{text}"));
        }
    }
}

impl Monitor for Shown {
    fn step(&mut self, record: &StepRecord) {
        self.training.set_length(record.steps);
        self.training.set_position(record.step);
        self.training.set_message(format!("loss {:.4} {:.0} ms", record.loss, record.milliseconds));
        if record.step == record.steps {
            self.training.finish_and_clear();
        }
    }

    fn validating(&mut self, done: usize, examples: usize) {
        if self.validation.is_hidden() && !self.training.is_hidden() {
            self.validation = bar(examples as u64, "validation");
        }
        self.validation.set_position(done as u64);
        if done == examples {
            self.validation.finish_and_clear();
            self.validation = ProgressBar::hidden();
        }
    }

    fn validated(&mut self, record: &ValidationRecord) {
        self.say(&record.to_string());
    }

    fn note(&mut self, text: &str) {
        self.say(text);
    }
}
