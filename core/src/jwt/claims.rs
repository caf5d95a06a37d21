//! Claims: JSON values, and where in them a clause looks.

use std::fmt;
use std::sync::Arc;

use crate::authorization::policy::InvalidClause;

/// A JSON value of a token.
#[derive(Clone, PartialEq)]
pub enum Claim {
    /// `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(Box<str>),
    /// An array.
    List(Vec<Claim>),
    /// An object; no name twice.
    Object(Vec<(Box<str>, Claim)>),
}

impl fmt::Debug for Claim {
    /// The kind: values are somebody's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Bool(_) => "Bool",
            Self::Int(_) => "Int",
            Self::Float(_) => "Float",
            Self::Text(_) => "Text",
            Self::List(_) => "List",
            Self::Object(_) => "Object",
        })
    }
}

impl Claim {
    /// A member of an object.
    pub fn member(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().find(|(n, _)| **n == *name).map(|(_, value)| value)
    }

    /// The text that it is.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// What a path leads to; nothing where a part of it is missing or is no object, and where it leads to `null`.
    pub fn at(&self, path: &ClaimPath) -> Option<&Self> {
        let found = path.0.iter().try_fold(self, |claim, name| claim.member(name))?;
        (*found != Self::Null).then_some(found)
    }

    /// Whether it is a text, of a whole number or a boolean the JSON; or a list that has such an element.
    pub fn has(&self, wanted: &str) -> bool {
        match self {
            Self::Text(text) => **text == *wanted,
            Self::Bool(is) => wanted == if *is { "true" } else { "false" },
            Self::Int(n) => wanted == n.to_string(),
            Self::List(list) => list.iter().any(|claim| !matches!(claim, Self::List(_)) && claim.has(wanted)),
            Self::Null | Self::Float(_) | Self::Object(_) => false,
        }
    }
}

/// Where a claim stands: the names of members, from the outermost on. 1 to 8.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClaimPath(Arc<[Arc<str>]>);

impl ClaimPath {
    /// The most names of a path.
    pub const DEEPEST: usize = 8;

    /// Names as they are, dots and all.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<Self, InvalidClause> {
        let text = || names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(".");
        let invalid = |why| Err(InvalidClause::new("claim", &text(), why));
        if names.is_empty() || names.len() > Self::DEEPEST {
            return invalid("it must have from 1 to 8 names");
        }
        if names.iter().any(|n| n.as_ref().is_empty() || n.as_ref().len() > 256) {
            return invalid("each name must have from 1 to 256 bytes");
        }
        Ok(Self(names.iter().map(|n| n.as_ref().into()).collect()))
    }

    /// Names with dots between them.
    pub fn dotted(text: &str) -> Result<Self, InvalidClause> {
        Self::new(&text.split('.').collect::<Vec<_>>())
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|n| &**n)
    }

    /// `scope` is a list with spaces between its elements (RFC 8693, section 4.2).
    pub fn is_scope(&self) -> bool {
        matches!(&*self.0, [name] if &**name == "scope")
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}
