//! The views that kinds declare of their records, folded: exact sums of groups, and their least, greatest and last values.
//!
//! Each version of an organization's read models folds a view over all of its records or not at all: it takes up what a kind
//! declares with the first record of the kind, and keeps to that. Views that are declared later come with the next version, which
//! is built beside the one that is shown.
//!
//! A record is in one row of a view at most. What it contributed is known from its row before the batch, so a change takes that
//! back exactly; the values of which a view has the least, greatest or last are rows of their own, and the next one is found by
//! their index. Numbers are decimals from the events' digits on, and nothing is rounded but a mean, when it is read.

use crate::read_model::ReadModel;

mod changes;
mod contribution;
mod rows;
mod taken_up;

pub(crate) use changes::Changes;
pub(crate) use contribution::InView;
pub use rows::{ViewFilter, ViewPlace, ViewRow, rows};
pub(crate) use taken_up::{Folding, PlainKinds, TakesUp, Views};
pub use taken_up::{KindViews, ViewBuildsAsked, folded, with_records};

pub(crate) const KIND_VIEWS: ReadModel =
    ReadModel::by_text("kind_views", "rm.kind_views", "kind COLLATE \"C\"", &["kind", "kind_version", "views"]);

pub(crate) const ROWS: ReadModel = ReadModel::by_bytes(
    "view_rows",
    "rm.view_rows",
    "key",
    &["key", "group_key", "kind", "view", "bucket_at", "groups", "records", "sums", "numbers", "edges"],
    &[],
)
.without(&["key", "group_key"]);

pub(crate) const VALUES: ReadModel =
    ReadModel::by_bytes("view_values", "rm.view_values", "key", &["key", "cell", "rank", "value"], &[])
        .without(&["key", "cell"]);
