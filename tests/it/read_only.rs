//! A database that is read-only for a while, and the sessions that began meanwhile: they keep that setting, and must
//! not be kept.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::cluster::{Cluster, ClusterOptions, create, eventually};

async fn run(database: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(database).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_writes_again_is_written_to_again() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("read-only").await;
    let mut database = cluster.superuser().await;
    let ways = [
        ("ALTER DATABASE orgstream SET default_transaction_read_only = on", "ALTER DATABASE orgstream RESET ALL"),
        (
            "ALTER ROLE app_rw SET default_transaction_read_only = on",
            "ALTER ROLE app_rw RESET default_transaction_read_only",
        ),
    ];
    for (number, (close, open)) in ways.into_iter().enumerate() {
        run(&mut database, close).await;
        run(&mut database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'app\\_%'").await;
        cluster.client.command(&tenant, &format!("meanwhile-{number}"), &create("meanwhile")).await.expect(201);
        for program in [&cluster.api, &cluster.workers[0]] {
            eventually("it to see that nothing can be written", async || {
                let (status, body) = program.readiness().await?;
                (status == 503 && body.to_string().contains("takes no writes")).then_some(())
            })
            .await;
        }
        run(&mut database, open).await;
        // Well below a minute, which is the timeout here: the sessions from before would live for fifteen.
        cluster.ready().await;
        cluster.until_projected(&tenant).await;
    }
}
