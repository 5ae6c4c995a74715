//! Values of statements, and how they are bound to a query of either database.

use std::mem;

use sqlx::{
    Postgres, Sqlite,
    postgres::PgArguments,
    query::{Query, QueryAs},
    sqlite::SqliteArguments,
};

use crate::model::text::Text;

/// A value bound to a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `TEXT`: it went through the gate, as there is no other way to make one.
    Text(Option<Text>),
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

value_from!(Text: String => |text| Text::of(&text), &str => Text::of, Text => |text| text);
value_from!(Int: i64 => |int| int, crate::clock::Timestamp => |time| time.0, bool => i64::from);
value_from!(Bytes: Vec<u8> => |bytes| bytes, &[u8] => <[u8]>::to_vec);

/// The values of a statement, in the order of its placeholders.
pub type Values = Vec<Value>;

/// The values of one column of many rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Text(Vec<Option<Text>>),
    Int(Vec<Option<i64>>),
    Bytes(Vec<Option<Vec<u8>>>),
}

impl Column {
    /// An empty column for values such as this one.
    pub(super) fn like(value: &Value) -> Self {
        match value {
            Value::Text(_) => Self::Text(Vec::new()),
            Value::Int(_) => Self::Int(Vec::new()),
            Value::Bytes(_) => Self::Bytes(Vec::new()),
        }
    }

    /// Adds the next row's value, which is of the first row's type.
    pub(super) fn push(&mut self, value: Value) {
        debug_assert_eq!(
            mem::discriminant(self),
            mem::discriminant(&Self::like(&value)),
            "one type a column"
        );
        match (self, value) {
            (Self::Text(column), Value::Text(value)) => column.push(value),
            (Self::Int(column), Value::Int(value)) => column.push(value),
            (Self::Bytes(column), Value::Bytes(value)) => column.push(value),
            (Self::Text(column), _) => column.push(None),
            (Self::Int(column), _) => column.push(None),
            (Self::Bytes(column), _) => column.push(None),
        }
    }

    /// What PostgreSQL calls the type of its values.
    pub(super) fn sql_type(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Int(_) => "bigint",
            Self::Bytes(_) => "bytea",
        }
    }
}

/// Makes [`Values`] of anything that converts: `values![room_id.as_str(), now, sealed]`.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::db::Value::from($value)),*] };
}
pub(crate) use values;

/// Binds values to a query of either database.
pub(super) trait Bind: Sized {
    fn bind_value(self, value: Value) -> Self;
    fn bind_column(self, column: Column) -> Self;
    fn bind_values(self, values: Values) -> Self {
        values.into_iter().fold(self, Self::bind_value)
    }
    fn bind_many(self, values: Values, columns: Vec<Column>) -> Self {
        columns.into_iter().fold(self.bind_values(values), Self::bind_column)
    }
}

macro_rules! bind {
    ($database:ty, $arguments:ty, |$query:ident, $column:ident| $bind_column:expr) => {
        bind!(Query<'q, $database, $arguments>, |$query, $column| $bind_column);
        bind!(QueryAs<'q, $database, O, $arguments>, |$query, $column| $bind_column, O);
    };
    ($of:ty, |$query:ident, $column:ident| $bind_column:expr $(, $row:ident)?) => {
        impl<'q $(, $row)?> Bind for $of {
            fn bind_value(self, value: Value) -> Self {
                match value {
                    Value::Text(value) => self.bind(value.map(Text::into_string)),
                    Value::Int(value) => self.bind(value),
                    Value::Bytes(value) => self.bind(value),
                }
            }
            fn bind_column(self, $column: Column) -> Self {
                let $query = self;
                $bind_column
            }
        }
    };
}
bind!(Postgres, PgArguments, |query, column| match column {
    Column::Text(column) =>
        query.bind(column.into_iter().map(|text| text.map(Text::into_string)).collect::<Vec<_>>()),
    Column::Int(column) => query.bind(column),
    Column::Bytes(column) => query.bind(column),
});
// It has no arrays, and is given none.
bind!(Sqlite, SqliteArguments, |query, _column| query);
