//! A PostgreSQL server that lets nobody in without TLS, and what each `sslmode` makes of it.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

use crate::support::{
    certificates::Certificates,
    coucou::Coucou,
    postgres::{Cluster, Database},
    until,
};

/// Makes the server of a cluster require TLS: whoever comes without is not let in.
async fn require_tls(database: &Database, certificates: &Certificates) {
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let mut put = async |text: &str, file: &str| {
        // As the server's own user, whose key must be readable to nobody else.
        let sql = format!(
            "COPY (SELECT unnest(string_to_array($text${text}$text$, E'\\n'))) TO PROGRAM 'umask 077; cat > {file}'"
        );
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
    };
    put(&certificates.text("server.pem"), "server.crt").await;
    put(&certificates.text("server.key"), "server.key").await;
    put("hostssl all all 127.0.0.1/32 trust\nhostssl all all ::1/128 trust", "pg_hba.conf").await;
    for sql in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        connection.execute(sql).await.unwrap();
    }
}

struct Server {
    coucou: Coucou,
    certificates: Certificates,
    database: Database,
    _cluster: Cluster,
}

impl Server {
    async fn start() -> Self {
        let (cluster, certificates) = (Cluster::start().await, Certificates::make().await);
        let database = cluster.database().await;
        require_tls(&database, &certificates).await;
        let coucou = Coucou::new().await.homeserver("http://127.0.0.1:9");
        let server = Self { coucou, certificates, database, _cluster: cluster };
        let refuses = async || server.migrate("127.0.0.1", "sslmode=disable").await.err();
        until("the server to want TLS", Duration::from_secs(20), refuses).await;
        server
    }

    fn url(&self, host: &str, query: &str) -> String {
        let mut url = Url::parse(&self.database.url()).unwrap();
        url.set_host(Some(host)).unwrap();
        let query = ["right", "wrong", "nothing", "absent"].iter().fold(query.to_owned(), |query, name| {
            let file = self.certificates.path(&format!("{name}.pem"));
            query.replace(&format!("={name}"), &format!("={}", file.display()))
        });
        url.set_query(Some(&query));
        url.into()
    }

    /// Whether `coucou migrate` reaches the database, or what it says.
    async fn migrate(&self, host: &str, query: &str) -> Result<(), String> {
        let url = self.url(host, query);
        let output = self.coucou.run_with(&["migrate"], "COUCOU_STORE_URL", &url).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }
}

const NO_TLS: &str = "only with TLS (sslmode in store.url)";
const ISSUER: &str = "not signed by a CA that sslrootcert in store.url names";
const HOST: &str = "for another host than store.url names, which sslmode=verify-full refuses";

/// Host, query, and what is said when it is refused. The certificate is for `localhost`.
const CASES: [(&str, &str, Option<&str>); 18] = [
    ("localhost", "sslmode=disable", Some(NO_TLS)),
    ("localhost", "sslmode=allow", None),
    ("127.0.0.1", "sslmode=allow&sslrootcert=wrong", None),
    ("127.0.0.1", "", None),
    ("127.0.0.1", "sslmode=prefer&sslrootcert=wrong", None),
    ("127.0.0.1", "sslmode=require", None),
    ("127.0.0.1", "sslmode=require&sslrootcert=right", None),
    ("localhost", "sslmode=require&sslrootcert=wrong", Some(ISSUER)),
    ("127.0.0.1", "sslmode=verify-ca&sslrootcert=right", None),
    ("localhost", "sslmode=verify-ca&sslrootcert=wrong", Some(ISSUER)),
    ("localhost", "sslmode=verify-ca", Some(ISSUER)),
    ("localhost", "sslmode=verify-full&sslrootcert=right", None),
    ("127.0.0.1", "sslmode=verify-full&sslrootcert=right", Some(HOST)),
    ("localhost", "sslmode=verify-full&sslrootcert=wrong", Some(ISSUER)),
    ("localhost", "sslmode=require&sslrootcert=system", Some(ISSUER)),
    ("localhost", "sslmode=verify-full&sslrootcert=absent", Some("absent.pem, which cannot be read")),
    ("localhost", "sslmode=verify-full&sslrootcert=nothing", Some("nothing.pem, which holds no certificate")),
    ("localhost", "sslmode=always", Some("store.url must be")),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_sslmode_connects_to_a_server_that_requires_tls_or_says_why_not() {
    let mut server = Server::start().await;
    for (host, query, expected) in CASES {
        match (server.migrate(host, query).await, expected) {
            (Ok(()), None) => {}
            (Err(said), Some(expected)) => assert!(said.contains(expected), "{host} {query}: {said}"),
            (other, _) => panic!("{host} {query}: {other:?}"),
        }
    }
    // The same of a service that runs; and it is no reason to fall back.
    let wrong = server.url("localhost", "sslmode=verify-full&sslrootcert=wrong");
    server.coucou.reset("COUCOU_STORE_URL", &wrong);
    server.coucou.reset("COUCOU_STORE_FALLBACK", "sqlite");
    server.coucou.spawn();
    let health = until("health to tell", Duration::from_secs(30), async || {
        let (_, health) = server.coucou.try_api("health").await?;
        (health["store"]["state"] == "unavailable").then_some(health)
    })
    .await;
    assert!(health["store"]["reason"].as_str().unwrap().contains(ISSUER), "{health}");
    assert_eq!(
        (&health["store"]["backend"], &health["store"]["fallback"]),
        (&"postgres".into(), &false.into())
    );
    assert!(server.coucou.terminate().await.success());
    let right = server.url("localhost", "sslmode=verify-full&sslrootcert=right");
    server.coucou.reset("COUCOU_STORE_URL", &right);
    server.coucou.start().await;
    let encrypted = "SELECT COUNT(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE ssl AND application_name = 'coucou'";
    let mut connection = PgConnection::connect(&right).await.unwrap();
    let count: i64 = sqlx::query_scalar(encrypted).fetch_one(&mut connection).await.unwrap();
    assert!(count > 0);
    assert!(server.coucou.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_by_the_modes_that_want_it() {
    let database = Database::create().await;
    let coucou = Coucou::new().await.homeserver("http://127.0.0.1:9");
    for (mode, connects) in
        [("disable", true), ("allow", true), ("prefer", true), ("require", false), ("verify-ca", false)]
    {
        let url = format!("{}?sslmode={mode}", database.url());
        let output = coucou.run_with(&["migrate"], "COUCOU_STORE_URL", &url).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.success(), connects, "{mode}: {said}");
        assert!(
            connects || said.contains("does not offer TLS, which sslmode in store.url wants"),
            "{mode}: {said}"
        );
    }
}
