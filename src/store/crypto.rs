//! What each account's crypto store keeps: the tables of migration `0002_crypto`.
//!
//! This module knows no Matrix types: it stores bytes under names. Everything that is or may hold a secret is
//! sealed for its row on the way in and opened on the way out; what rows are looked up by stays in clear.
//! Every table is scoped by account ([`Scope`]), so that two accounts in one database never meet.

pub mod bundles;
pub mod claims;
pub mod inbound;
pub mod listed;
pub mod olm;
#[cfg(test)]
pub(super) mod plans;
pub mod recovery_key;
pub mod requests;
pub mod rooms;
pub mod users;
pub mod values;

use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Db, Seal, StoreError, Tx,
    db::{Value, Values},
};
use crate::model::AccountId;

/// Bytes that are wiped when dropped.
pub type Plain = Zeroizing<Vec<u8>>;

/// Rows to write, each under its key, so that no statement meets a row twice.
pub type Rows<const N: usize> = BTreeMap<Key<N>, Plain>;

/// One account's part of the tables, and what opens it.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    seal: &'a Seal,
    account: AccountId,
}

impl<'a> Scope<'a> {
    /// The part of `account`.
    #[must_use]
    pub fn new(seal: &'a Seal, account: AccountId) -> Self {
        Self { seal, account }
    }

    fn seal<const N: usize>(
        &self,
        table: &'static str,
        key: &Key<N>,
        plain: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        self.seal.seal(table, &self.row(key), plain)
    }

    fn open<const N: usize>(
        &self,
        table: &'static str,
        key: &Key<N>,
        sealed: &[u8],
    ) -> Result<Plain, StoreError> {
        self.seal.open(table, &self.row(key), sealed).map(Zeroizing::new)
    }

    /// The name of a row that its contents are bound to. Keys contain no NUL, so no two rows share one.
    fn row<const N: usize>(&self, key: &Key<N>) -> String {
        let mut row = self.account.0.to_string();
        for part in &key.0 {
            row.push('\0');
            row.push_str(part);
        }
        row
    }

    /// The values of a statement: the account, then the parts of the key.
    fn values<const N: usize>(&self, key: &Key<N>) -> Values {
        let mut values = vec![Value::from(self.account.0)];
        values.extend(key.0.iter().map(|part| Value::from(part.as_str())));
        values
    }
}

/// The key of a row within an account, as it stands in the table's columns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key<const N: usize>([String; N]);

impl<const N: usize> Key<N> {
    /// The key made of these parts.
    #[must_use]
    pub fn of(parts: [&str; N]) -> Self {
        Self(parts.map(|part| column(part).into_owned()))
    }

    /// The parts, as they stand in the columns.
    #[must_use]
    pub fn parts(&self) -> &[String; N] {
        &self.0
    }

    /// The key of a row that was read.
    fn stored(parts: [String; N]) -> Self {
        Self(parts)
    }
}

/// Longest text that goes into a key column as it is: the limit of the ids that Matrix bounds.
const LONGEST: usize = 255;

/// A text as it stands in a key column.
///
/// Session and device ids come from other servers and may be anything. PostgreSQL stores no NUL and indexes
/// nothing beyond 2704 bytes, and a message that can never be stored would hold up all after it. Such texts
/// are replaced by a hash, whose mark keeps them apart from the others.
fn column(text: &str) -> Cow<'_, str> {
    const MARK: char = '#';
    if text.len() <= LONGEST && !text.contains('\0') && !text.starts_with(MARK) {
        return Cow::Borrowed(text);
    }
    let mut hashed = String::from(MARK);
    for byte in Sha256::digest(text) {
        // Writing to a string cannot fail.
        let _ = write!(hashed, "{byte:02x}");
    }
    Cow::Owned(hashed)
}

/// Writes rows of (account, key, sealed data).
async fn put<const N: usize>(
    tx: &mut Tx,
    scope: &Scope<'_>,
    table: &'static str,
    sql: &'static str,
    rows: Rows<N>,
) -> Result<(), StoreError> {
    let rows = rows.into_iter().map(|(key, plain)| {
        let mut values = scope.values(&key);
        values.push(Value::from(scope.seal(table, &key, &plain)?));
        Ok(values)
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    tx.execute_many(sql, vec![], rows).await?;
    Ok(())
}

/// Reads the sealed data of one row.
async fn find<const N: usize>(
    db: &Db,
    scope: &Scope<'_>,
    table: &'static str,
    sql: &'static str,
    key: Key<N>,
) -> Result<Option<Plain>, StoreError> {
    let row: Option<(Vec<u8>,)> = db.fetch_optional(sql, scope.values(&key)).await?;
    row.map(|(sealed,)| scope.open(table, &key, &sealed)).transpose()
}

/// Reads the rows under `first`: (last part of the key, sealed data).
async fn find_under(
    db: &Db,
    scope: &Scope<'_>,
    table: &'static str,
    sql: &'static str,
    first: &str,
) -> Result<Vec<Plain>, StoreError> {
    let first = Key::of([first]);
    let rows: Vec<(String, Vec<u8>)> = db.fetch_all(sql, scope.values(&first)).await?;
    let [first] = first.0;
    let open =
        |(last, sealed): (String, Vec<u8>)| scope.open(table, &Key::stored([first.clone(), last]), &sealed);
    rows.into_iter().map(open).collect()
}

/// The values of rows that consist of their key alone.
fn keys<const N: usize>(scope: &Scope<'_>, keys: impl IntoIterator<Item = Key<N>>) -> Vec<Values> {
    keys.into_iter().map(|key| scope.values(&key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_column_cannot_hold_is_hashed() {
        assert_eq!(column("!room:example.org"), "!room:example.org");
        let long = "x".repeat(LONGEST + 1);
        for text in ["a\0b", "#marked", long.as_str()] {
            let hashed = column(text);
            assert!(hashed.starts_with('#') && hashed.len() == 65, "{hashed}");
            assert_ne!(column(&hashed), hashed, "a hash given as text is another text");
        }
        assert_ne!(column("a\0b"), column("a\0c"));
    }
}
