//! Text in columns.

use crate::output::{Look, Tint, plain};

/// Lays `rows` out under `header`, two spaces between columns and none at the end of a line. A cell is one line, whatever is in it.
pub(crate) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&widths, header.iter().copied());
    for row in &rows {
        text.push_str(&line(&widths, row.iter().map(String::as_str)));
    }
    text
}

/// The same, with a header that stands out where there are colours.
pub(crate) fn dressed(header: &[&str], rows: &[Vec<String>], look: Look) -> String {
    let text = render(header, rows);
    match text.split_once('\n') {
        Some((first, rest)) if look.colour => format!("{}\n{rest}", look.paint(Tint::Head, first)),
        _ => text,
    }
}

fn line<'a>(widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
    let padded: Vec<String> = cells.zip(widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
    format!("{}\n", padded.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["bbb".to_owned(), "x".to_owned()]];
        assert_eq!(render(&["N", "WHAT"], &rows), "N    WHAT\na    long cell\nbbb  x\n");
        assert_eq!(render(&["N"], &[vec!["a\nb\u{9b}".to_owned()]]), "N\na\\u{a}b\\u{9b}\n");
    }
}
