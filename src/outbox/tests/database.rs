//! Deliveries while the database is away.

use super::*;

/// Lets a database refuse connections, or take them again.
async fn allow_connections(location: &Location, allow: bool) {
    let Location::Postgres { options, .. } = location else { panic!("PostgreSQL only") };
    let name = options.get_database().unwrap().to_owned();
    let url = std::env::var("COUCOU_TEST_DATABASE_URL").unwrap();
    let mut server = PgConnection::connect(&url).await.unwrap();
    let sql = AssertSqlSafe(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}"));
    server.execute(sql).await.unwrap();
    if !allow {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        sqlx::query(sql).bind(name).execute(&mut server).await.unwrap();
    }
}

#[tokio::test]
async fn outcomes_survive_a_database_that_goes_away() {
    let test = testing::postgres().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let main = webhook(store, "main").await;
    let (release, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let sink = Arc::new(Gate { release: Arc::clone(&release), begun: Arc::clone(&begun) });
    let sinks = BTreeMap::from([(main, Destination::new("main", Arc::clone(&sink) as Arc<dyn Sink>))]);
    put(store, &[main], &[("!a:x", 1)], START).await;
    let mut dispatcher = Dispatcher::new(
        store.clone(),
        clock,
        sinks,
        StdRng::seed_from_u64(1),
        Arc::new(Notify::new()),
        config(),
    );
    // The call begins, the database goes, the call succeeds.
    dispatcher.step().await.unwrap();
    begun.notified().await;
    allow_connections(&test.location, false).await;
    release.notify_one();
    let mut failures = 0;
    while failures < 3 {
        failures += usize::from(dispatcher.step().await.is_err());
    }
    allow_connections(&test.location, true).await;
    settle(&mut dispatcher).await;
    assert_eq!(counts(store).await, [("!a:x".to_owned(), 0, 0)]);
    let attempts: Vec<(i64,)> =
        store.db().fetch_all("SELECT attempts FROM deliveries", vec![]).await.unwrap();
    assert_eq!(attempts, [(1,)], "the outcome was kept, the delivery not repeated");
}
