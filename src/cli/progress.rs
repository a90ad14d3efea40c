//! Progress bars for people, plain lines where no terminal is.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::experiment::Progress;
use crate::files;
use crate::train::{Monitor, StepRecord, ValidationRecord};

/// A bar of `length` steps of `what`; hidden where standard error is no terminal.
pub(super) fn bar(length: u64, what: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed}<{eta} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_prefix(what.to_owned());
    bar
}

/// Shows a training run, with notes, each of the same words once.
pub(super) struct Shown {
    training: ProgressBar,
    validation: ProgressBar,
    said: BTreeSet<String>,
    signalled: Arc<AtomicBool>,
}

/// Exit status of a run that a signal ended: 128 and SIGINT's number.
pub(super) const INTERRUPTED: u8 = 130;

/// Whether a signal has asked for an end, once anybody listens for signals.
static SIGNALLED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// What SIGINT and SIGTERM set from now on, for the work to end after the step at hand; the second one ends it at once. A thread of
/// its own says so before it sets it: the step at hand may take long.
fn signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag::{register, register_conditional_shutdown};
    if let Some(signalled) = SIGNALLED.get() {
        return Ok(signalled.clone());
    }
    let fail = |source| Error::file("listen for", "signals", source);
    let came = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds what the first has set.
        register_conditional_shutdown(signal, INTERRUPTED.into(), came.clone())
            .and_then(|_| register(signal, came.clone()))
            .map_err(fail)?;
    }
    let signalled = Arc::new(AtomicBool::new(false));
    let mut first = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(fail)?;
    let seen = signalled.clone();
    let saying = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if first.forever().next().is_some() {
            // A bar's line has no end.
            let before = if std::io::stderr().is_terminal() { "\n" } else { "" };
            eprintln!(
                "{before}ending after the step or validation at hand, with a checkpoint of what is trained; a second Ctrl-C or SIGTERM ends \
                 at once"
            );
            seen.store(true, Ordering::Relaxed);
        }
    });
    saying.map_err(fail)?;
    Ok(SIGNALLED.get_or_init(|| signalled).clone())
}

/// Has SIGINT and SIGTERM end the process as ever, but without the temporary file of what it was writing.
pub(super) fn removing_unfinished_files() -> Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let fail = |source| Error::file("listen for", "signals", source);
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(fail)?;
    let ending = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            files::remove_unfinished();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    ending.map(drop).map_err(fail)
}

/// Shows a comparison: a bar a part of the work, and notes, each of the same words once.
pub(super) struct Bars {
    bar: ProgressBar,
    said: BTreeSet<String>,
    is_quiet: bool,
    signalled: Arc<AtomicBool>,
}

impl Bars {
    /// With notes.
    pub(super) fn new() -> Result<Self> {
        let (bar, said) = (ProgressBar::hidden(), BTreeSet::new());
        Ok(Self { bar, said, is_quiet: false, signalled: signals()? })
    }

    /// Without notes.
    pub(super) fn quiet() -> Result<Self> {
        Ok(Self { is_quiet: true, ..Self::new()? })
    }

    /// Clears the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bars {
    fn begin(&mut self, what: &str, steps: u64) {
        self.finish();
        self.bar = bar(steps, what);
    }

    fn more(&mut self, steps: u64) {
        self.bar.inc_length(steps);
    }

    fn step(&mut self) {
        self.bar.inc(1);
    }

    fn note(&mut self, text: &str) {
        if !self.is_quiet && self.said.insert(text.to_owned()) {
            say(&self.bar, text);
        }
    }

    fn ends(&mut self) -> bool {
        self.signalled.load(Ordering::Relaxed)
    }
}

/// Prints a line beside a bar.
fn say(bar: &ProgressBar, text: &str) {
    if bar.is_hidden() { eprintln!("{text}") } else { bar.suspend(|| eprintln!("{text}")) }
}

impl Shown {
    pub(super) fn new() -> Self {
        let (training, validation) = (bar(0, "training"), ProgressBar::hidden());
        Self { training, validation, said: BTreeSet::new(), signalled: Arc::default() }
    }

    /// Has the run end after the step at hand when the user interrupts it, and at once the second time.
    pub(super) fn ending_on_signals(self) -> Result<Self> {
        Ok(Self { signalled: signals()?, ..self })
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
        say(&self.training, &record.to_string());
    }

    fn note(&mut self, text: &str) {
        if self.said.insert(text.to_owned()) {
            say(&self.training, text);
        }
    }

    fn ends(&mut self) -> bool {
        self.signalled.load(Ordering::Relaxed)
    }
}
