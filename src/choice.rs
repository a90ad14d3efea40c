//! Enums whose values have names: in settings files, on the command line and in docs alike.

/// A value that is one of a few names.
pub trait Choice: Sized {
    /// Each name with what it means, in the order of the enum.
    const CHOICES: &'static [(&'static str, &'static str)];
}

/// Declares an enum whose variants have names, with `name()`, [`Choice`], `FromStr` and serde by those names. What stands
/// after `=` after the enum's name is its default.
macro_rules! choices {
    (
        $(#[doc = $about:literal])+
        pub enum $name:ident $(= $default:ident)? {
            $($(#[doc = $doc:literal])+ $variant:ident = $text:literal),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum $name {
            $($(#[doc = $doc])+ #[cfg_attr(feature = "serde", serde(rename = $text))] $variant),+
        }

        impl $name {
            /// The name on the command line and in files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl $crate::choice::Choice for $name {
            const CHOICES: &'static [(&'static str, &'static str)] = &[$(($text, concat!($($doc),+))),+];
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::Error;

            fn from_str(name: &str) -> $crate::error::Result<Self> {
                match name {
                    $($text => Ok(Self::$variant),)+
                    other => {
                        let names = [$($text),+].join(", ");
                        Err($crate::error::Error::setting("the value", format!("one of {names}"), other, ""))
                    }
                }
            }
        }

        $(impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        })?
    };
}
pub(crate) use choices;
