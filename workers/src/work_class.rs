//! The work class of a lane, by its amount of work; each has a part of the slots and a fair queue of its own.

use std::ops::{Index, IndexMut};

/// The amount of work of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WorkClass {
    /// A few messages: it shares its transaction with others.
    Light,
    /// More than that: its transactions are its own.
    Backlogged,
    /// A next message that alone exceeds the target duration of a batch.
    Expensive,
}

impl WorkClass {
    pub(crate) const ALL: [Self; 3] = [Self::Light, Self::Backlogged, Self::Expensive];
}

/// A value for each of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ByClass<T>([T; 3]);

impl<T> Index<WorkClass> for ByClass<T> {
    type Output = T;

    fn index(&self, class: WorkClass) -> &T {
        let [light, backlog, expensive] = &self.0;
        match class {
            WorkClass::Light => light,
            WorkClass::Backlogged => backlog,
            WorkClass::Expensive => expensive,
        }
    }
}

impl<T> IndexMut<WorkClass> for ByClass<T> {
    fn index_mut(&mut self, class: WorkClass) -> &mut T {
        let [light, backlog, expensive] = &mut self.0;
        match class {
            WorkClass::Light => light,
            WorkClass::Backlogged => backlog,
            WorkClass::Expensive => expensive,
        }
    }
}
