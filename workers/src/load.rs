//! How much a lane has to do: its kind of work, each of which has a part of the slots and a fair queue of its own.

use std::ops::{Index, IndexMut};

/// How much a lane has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// A few messages: it shares its transaction with others.
    Light,
    /// More than that: its transactions are its own.
    Backlog,
    /// A next message that alone takes longer than a slice should.
    Dear,
}

impl Load {
    pub(crate) const ALL: [Self; 3] = [Self::Light, Self::Backlog, Self::Dear];
}

/// Something for each of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ByLoad<T>([T; 3]);

impl<T> Index<Load> for ByLoad<T> {
    type Output = T;

    fn index(&self, load: Load) -> &T {
        let [light, backlog, dear] = &self.0;
        match load {
            Load::Light => light,
            Load::Backlog => backlog,
            Load::Dear => dear,
        }
    }
}

impl<T> IndexMut<Load> for ByLoad<T> {
    fn index_mut(&mut self, load: Load) -> &mut T {
        let [light, backlog, dear] = &mut self.0;
        match load {
            Load::Light => light,
            Load::Backlog => backlog,
            Load::Dear => dear,
        }
    }
}
