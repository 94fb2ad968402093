//! Finds the differences between the objects of a configuration and the stored objects, for every kind of object. Pure:
//! no I/O, no clock.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::error::ApplianceError;

/// A difference between an object of a configuration and the stored object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigurationChange {
    /// The kind of the object: `reflector`, `schedule`, `monitor`, `plan`, `channel` or `rule`.
    pub object: String,
    /// The name of the object; for a renamed object, the old name.
    pub name: String,
    /// What is done with the object.
    pub action: ChangeAction,
    /// The values of the object that change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValueChange>,
}

/// What is done with an object when a configuration is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// The object is added, because it is not stored yet.
    Added,
    /// The object is changed, because the stored object has other values.
    Changed,
    /// The object is removed: an earlier configuration file made it, and the present file does not contain it.
    Removed,
}

/// A changed value of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValueChange {
    /// The path of the value in the object: the names of the nested members, separated by dots.
    pub value: String,
    /// The stored value; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The new value; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

impl ChangeAction {
    /// The word for this action, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        }
    }
}

/// A stored object that a configuration file identifies by its name.
pub(super) trait StoredObject {
    /// The word for the kind of object in [`ConfigurationChange::object`].
    const KIND: &'static str;

    fn id(&self) -> Uuid;
    fn name(&self) -> &str;
    fn is_from_file(&self) -> bool;
}

/// Compares the objects of one kind in a configuration file with the stored objects. The case of names is ignored.
pub(super) struct ObjectComparison<'a, S> {
    stored: &'a [S],
    /// The names of the file's objects that were compared so far, in lower case.
    names: BTreeSet<String>,
    /// The ids of the stored objects that the file describes.
    described: BTreeSet<Uuid>,
    compared: Compared,
}

/// What a comparison of objects found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Every difference, in the order of the file. Removed objects come last.
    pub(super) changes: Vec<ConfigurationChange>,
    /// The ids of the stored objects that the file does not change. They count as made by the file from now on.
    pub(super) unchanged: Vec<Uuid>,
    /// The ids of the stored objects that an earlier file made and that the present file does not describe.
    pub(super) removed: Vec<Uuid>,
}

impl<'a, S: StoredObject> ObjectComparison<'a, S> {
    pub(super) fn new(stored: &'a [S]) -> Self {
        Self { stored, names: BTreeSet::new(), described: BTreeSet::new(), compared: Compared::default() }
    }

    /// Records the name of an object of the file. Returns `false` if the file has the name twice.
    pub(super) fn is_new_name(&mut self, name: &str) -> bool {
        self.names.insert(name.to_lowercase())
    }

    /// The stored object with this name; `None` if there is none.
    pub(super) fn find(&self, name: &str) -> Option<&'a S> {
        self.stored.iter().find(|stored| stored.name().to_lowercase() == name.to_lowercase())
    }

    /// Records that the file contains an object with this name, and that no such object is stored.
    pub(super) fn added(&mut self, name: &str) {
        self.compared.changes.push(change(S::KIND, name, ChangeAction::Added, Vec::new()));
    }

    /// Records that the file describes the object `stored`, and which of its values change. Returns whether any value
    /// changes. If none does, the object counts as made by the file from now on.
    pub(super) fn is_changed(&mut self, stored: &S, values: Vec<ValueChange>) -> bool {
        let is_changed = self.differs(stored, values);
        if !is_changed {
            self.compared.unchanged.push(stored.id());
        }
        is_changed
    }

    /// Does the same as [`ObjectComparison::is_changed`], but never makes the object count as made by the file. Meant
    /// for an object that the caller must not change.
    pub(super) fn differs(&mut self, stored: &S, values: Vec<ValueChange>) -> bool {
        self.described.insert(stored.id());
        let differs = !values.is_empty();
        if differs {
            self.compared.changes.push(change(S::KIND, stored.name(), ChangeAction::Changed, values));
        }
        differs
    }

    /// Ends the comparison. Lists as removed the objects that an earlier file made and that the present file does not
    /// describe.
    pub(super) fn end(mut self) -> Compared {
        for gone in self.stored.iter().filter(|stored| stored.is_from_file() && !self.described.contains(&stored.id()))
        {
            self.compared.changes.push(change(S::KIND, gone.name(), ChangeAction::Removed, Vec::new()));
            self.compared.removed.push(gone.id());
        }
        self.compared
    }
}

pub(super) fn change(object: &str, name: &str, action: ChangeAction, values: Vec<ValueChange>) -> ConfigurationChange {
    ConfigurationChange { object: object.to_owned(), name: name.to_owned(), action, values }
}

/// Wraps the error `source` in an error that names the object of the configuration that caused it.
pub(super) fn in_configuration(object: &str, name: &str, source: ApplianceError) -> ApplianceError {
    let object = format!("{object} {name}").trim_end().to_owned();
    ApplianceError::InConfiguration { object, source: Box::new(source) }
}

/// The values that differ between two objects, each with its path.
pub(super) fn differences<T: Serialize>(from: &T, to: &T) -> Vec<ValueChange> {
    let value = |object: &T| serde_json::to_value(object).unwrap_or_default();
    let mut changes = Vec::new();
    compare("", Some(&value(from)), Some(&value(to)), &mut changes);
    changes
}

fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, changes: &mut Vec<ValueChange>) {
    if from == to {
        return;
    }
    if let (Some(Value::Object(from)), Some(Value::Object(to))) = (from, to) {
        for name in from.keys().chain(to.keys()).collect::<BTreeSet<_>>() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            compare(&path, from.get(name), to.get(name), changes);
        }
        return;
    }
    changes.push(ValueChange { value: path.to_owned(), from: from.cloned(), to: to.cloned() });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stored object: its id, its name, and whether a file made it.
    struct Row(u128, &'static str, bool);

    impl StoredObject for Row {
        const KIND: &'static str = "row";

        fn id(&self) -> Uuid {
            Uuid::from_u128(self.0)
        }

        fn name(&self) -> &str {
            self.1
        }

        fn is_from_file(&self) -> bool {
            self.2
        }
    }

    #[test]
    fn rows_of_an_earlier_file_are_removed_and_others_stay() {
        let rows = [Row(1, "Same", true), Row(2, "other", false), Row(3, "gone", true), Row(4, "by_hand", false)];
        let mut comparison = ObjectComparison::new(&rows);
        assert!(comparison.is_new_name("same") && !comparison.is_new_name("SAME"));
        let same = comparison.find("same").unwrap();
        assert!(!comparison.is_changed(same, Vec::new()));
        let other = comparison.find("other").unwrap();
        assert!(comparison.is_changed(other, differences(&("a", 1), &("a", 2))));
        assert!(comparison.find("new").is_none());
        comparison.added("new");
        let Compared { changes, unchanged, removed } = comparison.end();
        let seen = changes.iter().map(|change| (&*change.object, &*change.name, change.action)).collect::<Vec<_>>();
        let (added, changed, gone) = (ChangeAction::Added, ChangeAction::Changed, ChangeAction::Removed);
        assert_eq!(seen, [("row", "other", changed), ("row", "new", added), ("row", "gone", gone)]);
        assert_eq!((unchanged, removed), (vec![Uuid::from_u128(1)], vec![Uuid::from_u128(3)]));
    }

    #[test]
    fn a_row_that_may_not_be_changed_keeps_its_mark() {
        let rows =
            [Row(1, "by_hand", false), Row(2, "of_a_file", true), Row(3, "other", false), Row(4, "marked", false)];
        let mut comparison = ObjectComparison::new(&rows);
        assert!(!comparison.differs(&rows[0], Vec::new()));
        assert!(!comparison.differs(&rows[1], Vec::new()));
        assert!(comparison.differs(&rows[2], differences(&("a", 1), &("a", 2))));
        assert!(!comparison.is_changed(&rows[3], Vec::new()));
        let Compared { changes, unchanged, removed } = comparison.end();
        assert_eq!((unchanged, removed), (vec![Uuid::from_u128(4)], vec![]));
        let seen = changes.iter().map(|change| (&*change.name, change.action)).collect::<Vec<_>>();
        assert_eq!(seen, [("other", ChangeAction::Changed)]);
    }

    #[test]
    fn a_difference_names_the_path_of_its_value() {
        let from = serde_json::json!({ "a": { "b": 1, "c": 2 }, "d": [1] });
        let to = serde_json::json!({ "a": { "b": 1, "c": 3 }, "e": "x" });
        let paths = differences(&from, &to).into_iter().map(|change| (change.value, change.from, change.to));
        let expected = [
            ("a.c".to_owned(), Some(2.into()), Some(3.into())),
            ("d".to_owned(), Some(serde_json::json!([1])), None),
            ("e".to_owned(), None, Some("x".into())),
        ];
        assert_eq!(paths.collect::<Vec<_>>(), expected);
    }
}
