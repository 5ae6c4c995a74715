//! Values of statements, and how they are bound to a query of either database.

use sqlx::{
    Postgres, Sqlite,
    postgres::PgArguments,
    query::{Query, QueryAs},
    sqlite::SqliteArguments,
};

/// A value bound to a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `TEXT`.
    Text(Option<String>),
    /// `BIGINT`.
    Int(Option<i64>),
    /// `BYTEA` or `BLOB`.
    Bytes(Option<Vec<u8>>),
}

macro_rules! value_from {
    ($variant:ident: $($from:ty => $convert:expr),+ $(,)?) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                let convert: fn($from) -> _ = $convert;
                Self::$variant(Some(convert(value)))
            }
        }
        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                let convert: fn($from) -> _ = $convert;
                Self::$variant(value.map(convert))
            }
        }
    )+};
}

value_from!(Text: String => |text| text, &str => str::to_owned);
value_from!(Int: i64 => |int| int, crate::clock::Timestamp => |time| time.0, bool => i64::from);
value_from!(Bytes: Vec<u8> => |bytes| bytes, &[u8] => <[u8]>::to_vec);

/// The values of a statement, in the order of its placeholders.
pub type Values = Vec<Value>;

/// Makes [`Values`] of anything that converts: `values![room_id.as_str(), now, sealed]`.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::db::Value::from($value)),*] };
}
pub(crate) use values;

/// Binds values to a query of either database.
pub(super) trait Bind: Sized {
    fn bind_value(self, value: Value) -> Self;
    fn bind_values(self, values: Values) -> Self {
        values.into_iter().fold(self, Self::bind_value)
    }
}

macro_rules! bind {
    ($database:ty, $arguments:ty) => {
        impl<'q> Bind for Query<'q, $database, $arguments> {
            fn bind_value(self, value: Value) -> Self {
                match value {
                    Value::Text(value) => self.bind(value),
                    Value::Int(value) => self.bind(value),
                    Value::Bytes(value) => self.bind(value),
                }
            }
        }
        impl<'q, O> Bind for QueryAs<'q, $database, O, $arguments> {
            fn bind_value(self, value: Value) -> Self {
                match value {
                    Value::Text(value) => self.bind(value),
                    Value::Int(value) => self.bind(value),
                    Value::Bytes(value) => self.bind(value),
                }
            }
        }
    };
}
bind!(Postgres, PgArguments);
bind!(Sqlite, SqliteArguments);
