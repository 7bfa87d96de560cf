//! The pipelines are declared once: no second list of them in the sources, and one that is added needs no filling in.

use std::{fs, path::Path};

use orgstream_events::Pipeline;

use crate::{
    cluster::eventually,
    papers::{name, with_extension},
    support::database,
    trouble::{Rig, run},
};

/// The one file that says something of each pipeline, and the one that declares them.
const BY_PIPELINE: [&str; 2] = ["events/src/pipeline.rs", "projections/src/apply.rs"];
/// Texts that know how many pipelines there are.
const COUNTED: [&str; 4] = ["both pipelines", "two pipelines", "three pipelines", "other pipeline "];

/// `read_models` is the variant `ReadModels`.
fn variant(pipeline: Pipeline) -> String {
    format!("Pipeline::{pipeline:?}")
}

/// Whether a line names a pipeline: in code, or between quotes of any kind.
fn names(line: &str, pipeline: Pipeline) -> bool {
    let quoted = ["\"", "'", "`"].map(|quote| format!("{quote}{pipeline}{quote}"));
    line.contains(&variant(pipeline)) || quoted.iter().any(|name| line.contains(name))
}

#[test]
fn no_source_has_a_second_list_of_the_pipelines() {
    let crates =
        ["events", "domain", "stream", "transparency", "projections", "workers", "servers", "verifier", "bench"];
    let folders = crates.map(|name| format!("{name}/src"));
    let mut files: Vec<_> = folders.iter().map(String::as_str).chain(["src"]).collect::<Vec<_>>();
    files.sort_unstable();
    let mut found = Vec::new();
    for path in
        files.into_iter().flat_map(|folder| [with_extension(folder, "rs"), with_extension(folder, "sql")].concat())
    {
        let file = name(&path);
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        if BY_PIPELINE.contains(&file.as_str()) || Path::new(&file).components().any(|part| part.as_os_str() == "tests")
        {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            let named: Vec<Pipeline> = Pipeline::ALL.into_iter().filter(|pipeline| names(line, *pipeline)).collect();
            let matches = Pipeline::ALL
                .into_iter()
                .any(|pipeline| line.split_once("=>").is_some_and(|(arm, _)| arm.contains(&variant(pipeline))));
            if named.len() > 1 || matches || COUNTED.iter().any(|text| line.contains(text)) {
                found.push(format!("{file}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "use Pipeline::ALL, Pipeline::NAMES or PerPipeline: {found:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_is_added_gets_everything_from_the_start_and_no_other_gets_it_twice() {
    const MESSAGES: usize = 250;
    // A reader that reads everything again, and one that leaves it to the lanes.
    for far_behind in [u64::MAX, 100] {
        let mut rig = Rig::start(database().await, |options| options.far_behind = far_behind).await;
        let org = rig.place().await;
        for _ in 0..MESSAGES {
            rig.write(&org).await;
        }
        rig.until_applied(&org).await;
        // A database from before the pipeline has nothing of it.
        rig.stop_worker().await;
        let of_it = "DELETE FROM ops.low_watermarks WHERE pipeline = 'read_models';
            DELETE FROM ops.checkpoints WHERE pipeline = 'read_models'; DELETE FROM rm.records";
        run(&mut rig.superuser().await, of_it).await;
        rig.start_worker();
        let last = rig.write(&org).await;
        rig.assert_whole(&org, MESSAGES + 1).await;
        eventually("the low watermark to be at the end", async || {
            let low_watermark = rig.database.db.low_watermark(org.shard).await.unwrap();
            (low_watermark.seq >= last && low_watermark.catching_up.is_empty()).then_some(())
        })
        .await;
        rig.end().await;
    }
}
