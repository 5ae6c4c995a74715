//! The migrations that are built in.

use std::borrow::Cow;

use futures_util::future::BoxFuture;
use sqlx::{
    error::BoxDynError,
    migrate::{Migrate, Migration, MigrationSource, MigrationType, Migrator},
};

use crate::store::StoreError;

/// The number before the first underscore, the name, the SQL.
pub(super) type Files = &'static [(i64, &'static str, &'static str)];

/// Files of one database: number, name, SQL. One name a line, in order; both databases have the same ones.
macro_rules! migrations {
    ($($file:literal)+) => {
        /// Those of PostgreSQL.
        pub(super) const POSTGRES: Files = &[$((
            number($file), $file, include_str!(concat!("../../../migrations/postgres/", $file, ".sql")),
        )),+];
        /// Those of SQLite.
        pub(super) const SQLITE: Files = &[$((
            number($file), $file, include_str!(concat!("../../../migrations/sqlite/", $file, ".sql")),
        )),+];
    };
}

migrations! {
    "0001_core"
    "0002_crypto"
    "0003_inbox"
    "0004_messages"
    "0005_outbox"
    "0006_rooms"
    "0007_ledger"
    "0008_bridges"
    "0009_retention"
    "0010_key_requests"
    "0011_backups"
    "0012_delivery"
    "0013_events_token"
    "0014_positions"
    "0015_ledger_indexes"
    "0016_flow"
    "0017_operator"
    "0018_silence"
    "0019_room_readings"
    "0021_settled_rooms"
    "0022_member_redactions"
    "0023_bridge_logins"
    "0028_key_bundles"
    "0029_session_claims"
}

/// The leading number of a migration's file name.
const fn number(name: &str) -> i64 {
    let bytes = name.as_bytes();
    let (mut at, mut number) = (0, 0);
    while at < bytes.len() && bytes[at].is_ascii_digit() {
        number = number * 10 + (bytes[at] - b'0') as i64;
        at += 1;
    }
    number
}

/// The migrations that are built in.
#[derive(Debug)]
struct BuiltIn(Files);

impl MigrationSource<'static> for BuiltIn {
    fn resolve(self) -> BoxFuture<'static, Result<Vec<Migration>, BoxDynError>> {
        Box::pin(async move {
            let all = self.0.iter().map(|&(version, name, sql)| {
                let sql = sqlx::SqlSafeStr::into_sql_str(sql);
                Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql, false)
            });
            Ok(all.collect())
        })
    }
}

/// Applies those of `files` that are missing, and answers their names.
pub(super) async fn apply<C: Migrate>(
    files: Files,
    connection: &mut C,
) -> Result<Vec<&'static str>, StoreError> {
    let migrator = migrator(files).await?;
    connection.ensure_migrations_table(&migrator.table_name).await?;
    let before = connection.list_applied_migrations(&migrator.table_name).await?;
    migrator.run_direct(None, connection, false).await?;
    let is_new = |version: i64| before.iter().all(|known| known.version != version);
    Ok(files.iter().filter(|file| is_new(file.0)).map(|file| file.1).collect())
}

/// Which of `files` are missing where the migrations of these numbers are applied: their names.
pub(super) fn missing(files: Files, applied: &[i64]) -> Vec<&'static str> {
    files.iter().filter(|file| !applied.contains(&file.0)).map(|file| file.1).collect()
}

async fn migrator(files: Files) -> Result<Migrator, StoreError> {
    let mut migrator = Migrator::new(BuiltIn(files)).await?;
    migrator.set_locking(false).set_ignore_missing(true);
    Ok(migrator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_in_order() {
        assert!(SQLITE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
