//! Statements for many rows at once.
//!
//! PostgreSQL takes the rows as one array a column, so that one prepared statement of a few values serves every
//! count; SQLite, which has no arrays, as lists of placeholders.

use super::value::{Column, Values};

/// As many rows go in one statement of arrays, so that no statement is large without bound.
const MOST_IN_ARRAYS: usize = 1024;

/// As many rows go in one statement of placeholders, in runs of powers of two, so that a handful of prepared
/// statements serves every count.
const MOST_IN_LISTS: usize = 256;

/// What stands for the rows in a statement's text, after `VALUES`.
const ROWS: &str = "VALUES {rows}";

/// A statement with the values of its rows.
pub(super) struct Many {
    pub(super) text: String,
    /// Bound one by one; then come the columns.
    pub(super) values: Values,
    pub(super) columns: Vec<Column>,
}

/// Splits rows into statements that PostgreSQL takes.
pub(super) fn arrays(sql: &str, shared: &Values, rows: Vec<Values>) -> Vec<Many> {
    let mut statements = Vec::new();
    let mut rows = rows.into_iter().peekable();
    while let Some(first) = rows.peek() {
        let mut columns: Vec<Column> = first.iter().map(Column::like).collect();
        for row in rows.by_ref().take(MOST_IN_ARRAYS) {
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        let (mut arrays, mut names) = (Vec::new(), Vec::new());
        for (at, column) in columns.iter().enumerate() {
            arrays.push(format!("${}::{}[]", shared.len() + at + 1, column.sql_type()));
            names.push(format!("column{}", at + 1));
        }
        let source = format!("SELECT * FROM UNNEST({}) AS u({})", arrays.join(", "), names.join(", "));
        statements.push(Many { text: sql.replace(ROWS, &source), values: shared.clone(), columns });
    }
    statements
}

/// Splits rows into statements that SQLite takes.
pub(super) fn lists(sql: &str, shared: &Values, rows: Vec<Values>) -> Vec<Many> {
    let mut statements = Vec::new();
    let mut left = rows.len();
    let mut rows = rows.into_iter();
    while left > 0 {
        let size = MOST_IN_LISTS.min(1 << left.ilog2());
        left -= size;
        let mut values = shared.clone();
        let mut list = String::from("VALUES ");
        for (number, row) in rows.by_ref().take(size).enumerate() {
            list.push_str(if number == 0 { "(" } else { ", (" });
            for (column, value) in row.into_iter().enumerate() {
                values.push(value);
                if column > 0 {
                    list.push_str(", ");
                }
                list.push('$');
                list.push_str(&values.len().to_string());
            }
            list.push(')');
        }
        statements.push(Many { text: sql.replace(ROWS, &list), values, columns: Vec::new() });
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::db::values;

    #[test]
    fn postgresql_gets_an_array_for_each_column() {
        let rows = || (0..3).map(|n: i64| values![n, (n == 1).then_some("x")]).collect();
        let [one] = &*arrays("INSERT INTO t VALUES {rows} ON CONFLICT DO NOTHING", &values![7_i64], rows())
        else {
            panic!("not one statement");
        };
        assert_eq!(
            one.text,
            "INSERT INTO t SELECT * FROM UNNEST($2::bigint[], $3::text[]) AS u(column1, column2) ON CONFLICT DO NOTHING"
        );
        assert_eq!(one.values, values![7_i64]);
        let columns = [
            Column::Int(vec![Some(0), Some(1), Some(2)]),
            Column::Text(vec![None, Some(crate::model::text::Text::of("x")), None]),
        ];
        assert_eq!(one.columns, columns);
        let many = (0..2500).map(|n: i64| values![n]).collect();
        assert_eq!(arrays("VALUES {rows}", &vec![], many).len(), 3);
        assert!(arrays("VALUES {rows}", &vec![], Vec::new()).is_empty());
    }

    #[test]
    fn sqlite_gets_rows_in_runs_of_powers_of_two() {
        let rows = (0..5).map(|n: i64| values![n, "x"]).collect();
        let runs = lists("INSERT INTO t VALUES {rows}", &values![7_i64], rows);
        let texts: Vec<_> = runs.iter().map(|run| run.text.as_str()).collect();
        assert_eq!(
            texts,
            ["INSERT INTO t VALUES ($2, $3), ($4, $5), ($6, $7), ($8, $9)", "INSERT INTO t VALUES ($2, $3)"]
        );
        assert_eq!(runs[1].values, values![7_i64, 4_i64, "x"]);
        assert_eq!(lists("VALUES {rows}", &vec![], (0..700).map(|n: i64| values![n]).collect()).len(), 7);
    }
}
