//! Where objects come from. A source ends in [`Change`]s to the model; nothing behind it knows which source it was.

pub mod directory;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod parse;

use crate::objects::{Object, ObjectKey};

/// One change to the set of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Upsert(Object),
    Delete(ObjectKey),
}

/// What a source tells the model, all at once.
#[derive(Debug, Default)]
pub struct Batch {
    pub changes: Vec<Change>,
    /// Every problem that stands now, replacing the earlier list.
    pub problems: Vec<Problem>,
    /// Whether everything has been read once; nothing is served before that.
    pub complete: bool,
}

/// Something that the source could not use. The last good version is in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// File and line, or the name of an object.
    pub place: String,
    /// The field, as a path; empty where no single one is at fault.
    pub field: String,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
