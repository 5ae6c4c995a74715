//! What was measured, as a table and as plots.

use std::{fmt::Write as _, fs, path::Path};

use super::scene::Backend;

/// One number.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    name: String,
    value: f64,
}

impl Figure {
    pub(crate) fn new(name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), value }
    }
}

/// Everything that one run measured.
#[derive(Debug)]
pub(crate) struct Report {
    baseline: f64,
    rows: Vec<(Backend, String, Vec<Figure>)>,
}

impl Report {
    pub(crate) fn new(baseline: f64) -> Self {
        println!("raw vodozemac: {:.0} decryptions a second on one core", 1.0 / baseline);
        Self { baseline, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, backend: Backend, what: &str, figures: Vec<Figure>) {
        for figure in &figures {
            println!("    {}: {}", figure.name, rounded(figure.value));
        }
        self.rows.push((backend, what.to_owned(), figures));
    }

    /// A Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| measurement | store | figure | value |\n|---|---|---|---:|\n");
        for (backend, what, figures) in &self.rows {
            for figure in figures {
                let (store, value) = (backend.name(), rounded(figure.value));
                let _ = writeln!(table, "| {what} | {store} | {} | {value} |", figure.name);
            }
        }
        let raw = rounded(1.0 / self.baseline);
        let _ = writeln!(table, "| raw vodozemac | | decryptions/s on one core | {raw} |");
        table
    }

    /// Writes a page, `figures.md`, and a plot of all that is counted by the second.
    pub(crate) fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let page = format!(
            "# Figures\n\nAs `make bench ARGS=\"{}\"` wrote them on {}. What they mean is in [how fast it is](../performance.md).\n\n\
             ![Messages a second](rates.svg)\n\n{}",
            // Without what Cargo adds.
            std::env::args().skip(1).filter(|arg| arg != "--bench").collect::<Vec<_>>().join(" "),
            machine(),
            self.table()
        );
        fs::write(folder.join("figures.md"), page).unwrap();
        fs::write(folder.join("rates.svg"), self.plot()).unwrap();
    }

    fn plot(&self) -> String {
        const WIDTH: f64 = 360.0;
        let bars: Vec<(String, f64)> = self
            .rows
            .iter()
            .flat_map(|(backend, what, figures)| {
                let rates = figures.iter().filter(|figure| figure.name == "messages/s");
                rates.map(move |figure| (format!("{what} ({})", backend.name()), figure.value))
            })
            .collect();
        let most = bars.iter().map(|bar| bar.1).fold(1.0, f64::max);
        let height = bars.len() * 26 + 40;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-weight=\"bold\">Messages a second, from push to \
             webhook</text>\n"
        );
        for (at, (name, value)) in bars.iter().enumerate() {
            let y = at * 26 + 34;
            let (width, text, shown) = (value / most * WIDTH, y + 14, rounded(*value));
            let _ = writeln!(
                svg,
                "<text x=\"400\" y=\"{text}\" text-anchor=\"end\">{name}</text><rect x=\"410\" y=\"{y}\" \
                 width=\"{width:.0}\" height=\"18\" fill=\"#4078c0\"/><text x=\"{:.0}\" y=\"{text}\">{shown}\
                 </text>",
                418.0 + width
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// What it ran on.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cores} cores of {}", model.map_or("an unknown processor", |(_, model)| model))
}

/// Three digits, as nobody believes more.
fn rounded(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
