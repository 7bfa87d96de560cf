//! Tables for people: aligned, plain, and no wider than necessary.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

/// Creates a table with this head; `numbers` are the columns that are aligned to the right.
pub fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for place in numbers {
        if let Some(column) = table.column_mut(*place) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Creates a table of JSON objects: a column for each field in `head`, a dash where there is nothing.
pub fn rows_table(rows: &[Value], head: &[&str], numbers: &[usize]) -> Table {
    let mut table = table(head, numbers);
    for row in rows {
        table.add_row(head.iter().map(|name| match row.get(*name) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }));
    }
    table
}
