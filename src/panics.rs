//! Panics of other people's code that reads files, taken for errors.
//!
//! Some crates index by numbers that a damaged file gives them. What can be checked is checked before they see it; for the rest
//! [`contained`] turns their panic into an answer, without their message on standard error.
//!
//! A program built with `panic = "abort"` ends at a panic whatever is done here: there the message is printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, or `None` if it panics. The process's panic hook is wrapped at the first call; it goes on hearing of every
/// panic but those in here.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    if cfg!(panic = "abort") {
        return Some(work());
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |panic| {
            if !SILENT.get() {
                previous(panic);
            }
        }));
    });
    let outer = SILENT.replace(true);
    // Whoever calls drops what the work has touched when there is no answer.
    let answer = catch_unwind(AssertUnwindSafe(work)).ok();
    SILENT.set(outer);
    answer
}
