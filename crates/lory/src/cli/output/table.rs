//! Tables: text is aligned left, columns of numbers right.

use console::measure_text_width;

/// Rows of text with a heading.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines, with a rule below the heading.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| measure_text_width(cell))
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let is_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        let right = |column: usize| {
            let mut cells = self.rows[1..].iter().filter_map(|row| row.get(column));
            cells.all(|cell| is_number(cell))
        };
        let right: Vec<bool> = (0..columns).map(right).collect();
        let mut out = String::new();
        for (i, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - measure_text_width(cell));
                if column > 0 {
                    line += "  ";
                }
                line += &if right[column] {
                    format!("{padding}{cell}")
                } else {
                    format!("{cell}{padding}")
                };
            }
            out += line.trim_end();
            out.push('\n');
            if i == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
                out += &rule.join("  ");
                out.push('\n');
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["tone", "right", "file"]);
        table.row(["customer 😊", "97.5%", "a"].map(str::to_owned));
        table.row(["b", "3%", "long"].map(str::to_owned));
        assert_eq!(
            table.render(),
            "tone         right  file\n───────────  ─────  ────\ncustomer 😊  97.5%  a\nb               3%  long\n"
        );
    }
}
