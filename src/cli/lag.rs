//! `orgstream lag`: how far behind the projections are, and whose.

use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::Value;

use super::{client::Api, table::table};
use crate::config::ClientArgs;

/// Show how far the projections are.
///
/// With a key of an organization (or --org): that organization's pipelines. With the platform operator's token and
/// --all: the lanes that are the furthest behind, over all organizations.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// The worst of all organizations. For operators.
    #[arg(long, conflicts_with = "org")]
    all: bool,
    /// Show it again every second until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print the API's answer as it is.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let path = if args.all {
        "/v1/platform/lag".to_owned()
    } else {
        format!("/v1/organizations/{}/projections", api.org(args.org.clone()).await?)
    };
    loop {
        let answer = api.get(&path).await?;
        if args.json {
            println!("{answer}");
        } else {
            print_rows(&answer);
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// One line per row, one column per field, whatever the API has to say.
fn print_rows(answer: &Value) {
    let rows = answer.pointer("/data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let Some(Value::Object(first)) = rows.first() else {
        println!("nothing is behind");
        return;
    };
    let head: Vec<&str> = first.keys().map(String::as_str).collect();
    let numbers: Vec<usize> =
        first.values().enumerate().filter(|(_, value)| value.is_number()).map(|(place, _)| place).collect();
    let mut table = table(&head, &numbers);
    for row in rows {
        table.add_row(head.iter().map(|name| match row.get(*name) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }));
    }
    println!("{table}");
}
