//! Tables for people and for `cut`.

use std::cmp::Ordering;

use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::error::ErrorKind;

/// One cell: a text, or a number with the text that shows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Left-aligned, sorted as text.
    Text(String),
    /// Right-aligned, sorted by value.
    Number(f64, String),
}

impl Cell {
    fn text(&self) -> &str {
        match self {
            Cell::Text(text) | Cell::Number(_, text) => text,
        }
    }

    fn compare(&self, other: &Cell) -> Ordering {
        match (self, other) {
            (Cell::Number(a, _), Cell::Number(b, _)) => a.total_cmp(b),
            _ => self.text().cmp(other.text()),
        }
    }
}

/// One column: how it is called and how it is read from a row.
pub struct Column<T> {
    /// Its name in `-o` and, in capitals, in the header.
    pub name: &'static str,
    /// Its cell; `true` asks for exact numbers.
    pub cell: fn(&T, bool) -> Cell,
}

/// How a list is to be shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ListFlags {
    /// No header, and tabs between the columns: for scripts
    #[arg(short = 'H')]
    pub no_header: bool,
    /// Columns to show, parted by commas; the answer to an unknown one lists them
    #[arg(short = 'o', value_name = "COLUMN,...", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Column to sort by
    #[arg(short = 's', value_name = "COLUMN")]
    pub sort: Option<String>,
    /// Exact bytes instead of rounded sizes
    #[arg(short = 'p')]
    pub exact: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    pub json: bool,
}

/// Renders rows as the flags say; `defaults` are the columns shown without `-o`.
///
/// # Errors
/// `Invalid` for a column that does not exist.
pub fn render<T>(rows: &[T], columns: &[Column<T>], defaults: &[&str], flags: &ListFlags) -> Outcome<String> {
    let names: Vec<&str> = match flags.columns.is_empty() {
        true => defaults.to_vec(),
        false => flags.columns.iter().map(String::as_str).collect(),
    };
    let shown = names.iter().map(|name| find(columns, name)).collect::<Outcome<Vec<_>>>()?;
    let mut rows: Vec<&T> = rows.iter().collect();
    if let Some(name) = &flags.sort {
        let key = find(columns, name)?;
        rows.sort_by(|a, b| (key.cell)(a, true).compare(&(key.cell)(b, true)));
    }
    let cells: Vec<Vec<Cell>> =
        rows.iter().map(|row| shown.iter().map(|column| (column.cell)(row, flags.exact)).collect()).collect();
    if flags.no_header {
        let line = |row: &Vec<Cell>| row.iter().map(Cell::text).collect::<Vec<_>>().join("\t") + "\n";
        return Ok(cells.iter().map(line).collect());
    }
    Ok(align(&shown.iter().map(|column| column.name.to_ascii_uppercase()).collect::<Vec<_>>(), &cells))
}

/// One row with a line for each column.
#[must_use]
pub fn describe<T>(row: &T, columns: &[Column<T>], exact: bool) -> String {
    let line = |column: &Column<T>| {
        let cell = (column.cell)(row, exact);
        format!("{:<12} {}", column.name, cell.text()).trim_end().to_owned() + "\n"
    };
    columns.iter().map(line).collect()
}

fn align(header: &[String], cells: &[Vec<Cell>]) -> String {
    let width = |index: usize| {
        let widest =
            cells.iter().filter_map(|row| row.get(index)).map(|cell| cell.text().chars().count()).max();
        widest.unwrap_or(0).max(header[index].chars().count())
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let head: Vec<Cell> = header
        .iter()
        .enumerate()
        .map(|(index, name)| match cells.first().map(|row| &row[index]) {
            Some(Cell::Number(..)) => Cell::Number(0.0, name.clone()),
            _ => Cell::Text(name.clone()),
        })
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(cells) {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| match cell {
                Cell::Text(text) => format!("{text:<width$}"),
                Cell::Number(_, text) => format!("{text:>width$}"),
            })
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn find<'a, T>(columns: &'a [Column<T>], name: &str) -> Outcome<&'a Column<T>> {
    columns.iter().find(|column| column.name == name).ok_or_else(|| {
        let all: Vec<&str> = columns.iter().map(|column| column.name).collect();
        Failure::new(ErrorKind::Invalid, format!("there is no column `{name}`"))
            .hint(format!("the columns are {}", all.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column<(&str, u32)>] = &[
        Column { name: "name", cell: |row, _| Cell::Text(row.0.to_owned()) },
        Column { name: "size", cell: |row, _| Cell::Number(f64::from(row.1), row.1.to_string()) },
    ];

    #[test]
    fn columns_line_up() {
        let rows = [("zeta", 5), ("\u{f6}", 1000)];
        let flags = ListFlags::default();
        assert_eq!(
            render(&rows, COLUMNS, &["name", "size"], &flags).unwrap(),
            "NAME  SIZE\nzeta     5\n\u{f6}     1000\n"
        );
        let flags = ListFlags { no_header: true, sort: Some("size".to_owned()), ..ListFlags::default() };
        assert_eq!(render(&rows, COLUMNS, &["size", "name"], &flags).unwrap(), "5\tzeta\n1000\t\u{f6}\n");
        let flags = ListFlags { columns: vec!["shape".to_owned()], ..ListFlags::default() };
        assert!(render(&rows, COLUMNS, &["name"], &flags).is_err());
    }
}
