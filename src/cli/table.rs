//! Tables for people: aligned, plain, and no wider than they must be.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table with this head; `numbers` are the columns that are aligned to the right.
pub(crate) fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for place in numbers {
        if let Some(column) = table.column_mut(*place) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
