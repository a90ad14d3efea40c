//! What kernels take and share with the host, as their files in `kernels/` have it: `build/layout.rs` makes it of them, a
//! module for the files of each stem.

use super::kernels::Arguments;

include!(concat!(env!("OUT_DIR"), "/layout.rs"));

/// The number of a side, in an argument.
pub(super) fn side_number(side: crate::backend::Side) -> i32 {
    let number = match side {
        crate::backend::Side::Encoder => batch::Side::Encoder,
        crate::backend::Side::Decoder => batch::Side::Decoder,
    };
    number as i32
}

/// The number of a scope, in an argument.
pub(super) fn scope_number(scope: crate::backend::Scope) -> i32 {
    let number = match scope {
        crate::backend::Scope::All => batch::Scope::All,
        crate::backend::Scope::Prompt => batch::Scope::Prompt,
    };
    number as i32
}
