//! Holds what stands under one `parameters:` key.
//!
//! In: its node. Out: named settings, each with its place. Which names exist is up to the merge method.

use aludel_document::{Cursor, Located, Scalar};
use indexmap::IndexMap;

use super::value::Setting;
use crate::problem::{Place, Problems};

/// The parameters given at one level of a recipe, in the order written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    entries: IndexMap<String, Parameter>,
}

/// A parameter that is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Where its name is written.
    pub place: Place,
    /// What it is set to.
    pub setting: Setting,
}

impl Parameters {
    /// The names given, in the order written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The parameters given, in the order written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.entries.iter().map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// The parameter of this name, if given.
    pub fn find(&self, name: &str) -> Option<&Parameter> {
        self.entries.get(name)
    }

    /// The value of a parameter for a tensor at a position from 0 (first layer) to 1 (last layer). `None` when the
    /// parameter is not given or none of its filters selects the tensor.
    pub fn resolve(&self, name: &str, tensor: &str, position: f64) -> Option<Located<Scalar>> {
        self.find(name)?.setting.resolve(tensor, position)
    }

    /// Reads the parameters below `parent`; none when it has no `parameters:`.
    pub(super) fn read(parent: &Cursor<'_>, problems: &mut Problems) -> Self {
        let Some(cursor) = parent.field("parameters") else { return Self::default() };
        let entries = problems.take(cursor.entries()).unwrap_or_default();
        let read = |(name, place, value): (&str, Place, Cursor<'_>)| {
            let setting = Setting::read(&value, problems)?;
            Some((name.to_owned(), Parameter { place, setting }))
        };
        Self { entries: entries.into_iter().filter_map(read).collect() }
    }
}
