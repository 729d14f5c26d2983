//! The layout of state.json and sandbox.json, which rvms of different versions read and write.
//!
//! A file says its layout in the field `version`; a file without it is of layout 1. A layout grows
//! when a program that knows only the one before would misread the file. A new field alone is
//! passed over by older programs and changes nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The layout of a file. A file that is rewritten keeps its own: the process that made it may be of
/// an older rvm and read it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Layout(u32);

impl Layout {
    /// What this program writes.
    pub const CURRENT: Self = Self(2);

    /// Without the field, and with no field that layout 1 does not have.
    const FIRST: Self = Self(1);

    /// For serde: layout 1 has no field for it.
    pub(crate) fn is_first(&self) -> bool {
        *self == Self::FIRST
    }
}

/// That of a file that does not say.
impl Default for Layout {
    fn default() -> Self {
        Self::FIRST
    }
}

/// A file is of a layout that this program does not know.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} was written by a newer rvm (layout {}; this one knows up to {}): use that rvm",
    path.display(), found.0, Layout::CURRENT.0
)]
pub struct NewerLayout {
    path: PathBuf,
    found: Layout,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    version: Layout,
}

/// Refuses the text of a file whose layout is newer than this program knows. What cannot be read at
/// all is for the caller to find.
pub fn check(path: &Path, text: &[u8]) -> Result<(), NewerLayout> {
    match serde_json::from_slice::<Head>(text) {
        Ok(Head { version }) if version > Layout::CURRENT => Err(NewerLayout {
            path: path.to_owned(),
            found: version,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_layout_is_refused() {
        let check = |text: &str| check(Path::new("/run/rvm/web/state.json"), text.as_bytes());
        for known in ["{}", r#"{"version":2,"other":[]}"#, "", "[]"] {
            assert!(check(known).is_ok(), "{known}");
        }
        let refused = check(r#"{"version":3}"#).unwrap_err().to_string();
        let expected = "/run/rvm/web/state.json was written by a newer rvm (layout 3; this one \
                        knows up to 2): use that rvm";
        assert_eq!(refused, expected);
    }
}
