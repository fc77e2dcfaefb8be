//! Line charts as SVG, for light and dark backgrounds.
//!
//! ```
//! use innerloop::chart::{Chart, Line};
//!
//! let adapted = Line { label: "MAML", points: vec![(0.0, 3.1), (1.0, 0.4), (5.0, 0.2)], margins: vec![0.3, 0.05, 0.03] };
//! let (title, x, y) = ("Sinusoids", "inner steps", "mean squared error");
//! let chart = Chart { title, x, y, lines: vec![adapted], marks: true, logarithmic: true };
//! assert!(chart.svg((760.0, 420.0), true).is_some_and(|svg| svg.ends_with("</svg>")));
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::Result;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// Its name in the legend, which is there if there are several lines.
    pub label: &'a str,
    /// x and y of each point; those whose y is not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Half the height of each point's confidence interval; none where there are none.
    pub margins: Vec<f64>,
}

/// What a chart shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// The name of the horizontal axis.
    pub x: &'a str,
    /// The name of the vertical axis.
    pub y: &'a str,
    /// Its lines; each has a colour of its own, up to eight.
    pub lines: Vec<Line<'a>>,
    /// Whether each point is marked.
    pub marks: bool,
    /// Whether the vertical axis is logarithmic, if all values are positive and span more than a factor of three.
    pub logarithmic: bool,
}

/// What a page that holds charts needs; a chart in a file of its own brings it along.
pub(crate) const STYLE: &str = include_str!("chart.css");

/// Lines differ in colour as far as there are colours.
const COLOURS: usize = 8;
/// Width of a letter and height of a line, in the chart's units, about.
const LETTER: f64 = 7.2;
const TEXT: f64 = 18.0;

/// Width and height of a chart in a file.
const SIZE: (f64, f64) = (760.0, 420.0);

/// Writes charts as one file, so many side by side; those without a point are left out.
pub(crate) fn write_sheet(charts: &[Chart<'_>], columns: usize, path: &Path) -> Result<()> {
    let parts: Vec<String> = charts.iter().filter_map(|chart| chart.svg(SIZE, true)).collect();
    let (width, height) = (SIZE.0 * columns as f64, SIZE.1 * parts.len().div_ceil(columns) as f64);
    crate::atomic::write(path, |out| {
        writeln!(out, r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">"#)?;
        for (index, part) in parts.iter().enumerate() {
            let (x, y) = (SIZE.0 * (index % columns) as f64, SIZE.1 * (index / columns) as f64);
            writeln!(out, r#"<svg x="{x}" y="{y}" width="{}" height="{}">{part}</svg>"#, SIZE.0, SIZE.1)?;
        }
        writeln!(out, "</svg>")
    })
}

impl Line<'_> {
    /// Each point and half the height of its interval.
    fn intervals(&self) -> impl Iterator<Item = ((f64, f64), f64)> {
        self.points.iter().copied().zip(self.margins.iter().copied().chain(std::iter::repeat(0.0)))
    }
}

impl Chart<'_> {
    /// Writes the chart as an SVG file of its own, if it has a point at all.
    ///
    /// # Errors
    /// A place that cannot be written to.
    pub fn write(&self, path: &Path) -> Result<()> {
        match self.svg(SIZE, true) {
            Some(svg) => crate::atomic::write(path, |out| writeln!(out, "{svg}")),
            None => Ok(()),
        }
    }

    /// The chart of that width and height in the chart's units (a letter is about 7 wide), if it has a point at all; `alone`:
    /// with colours and background, as a file, rather than as part of a page.
    pub fn svg(&self, (width, height): (f64, f64), alone: bool) -> Option<String> {
        let intervals = || self.lines.iter().flat_map(Line::intervals);
        let ends = || intervals().flat_map(|((x, y), margin)| [(x, y - margin), (x, y + margin)]);
        let bounds = |value: fn((f64, f64)) -> f64| {
            ends().filter(|p| p.1.is_finite()).map(value).fold(None, |bounds: Option<(f64, f64)>, v| {
                Some(bounds.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
        };
        let ((x_low, x_high), (y_low, y_high)) = (bounds(|p| p.0)?, bounds(|p| p.1)?);
        // Within a small range a logarithmic axis has too few labels to read.
        let logarithmic = self.logarithmic && y_low > 0.0 && y_high > 3.0 * y_low;
        let (top, bottom) = (2.0 * TEXT + self.legend_rows(width) * TEXT, 2.6 * TEXT);
        let y = Axis::new(y_low..=y_high, logarithmic, ((height - top - bottom) / 40.0) as usize);
        let left = 2.0 * TEXT + LETTER * y.labels().iter().map(|(_, text)| text.len()).max().unwrap_or(1) as f64;
        let right = width - 2.0 * LETTER;
        let x = Axis::new(x_low..=x_high, false, ((right - left) / 70.0) as usize).whole().tight(x_low, x_high);
        let place_x = |value: f64| left + x.fraction(value) * (right - left);
        let place_y = |value: f64| height - bottom - y.fraction(value) * (height - top - bottom);

        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#,
            escape(self.title)
        );
        if alone {
            let _ = write!(svg, r#"<style>{STYLE}</style><rect class="paper" width="{width}" height="{height}"/>"#);
        }
        text(&mut svg, "title", (width / 2.0, 1.2 * TEXT), self.title);
        self.write_legend(&mut svg, width);
        for (value, label) in y.labels() {
            let at = place_y(value);
            let _ = write!(svg, r#"<path class="grid" d="M{left:.1} {at:.1}H{right:.1}"/>"#);
            text(&mut svg, "end", (left - 6.0, at + 4.5), &label);
        }
        for (value, label) in x.labels() {
            let at = place_x(value);
            let _ = write!(svg, r#"<path class="grid" d="M{at:.1} {top:.1}V{:.1}"/>"#, height - bottom);
            text(&mut svg, "middle", (at, height - bottom + TEXT), &label);
        }
        text(&mut svg, "middle", ((left + right) / 2.0, height - 0.4 * TEXT), self.x);
        let (at_x, at_y) = (0.8 * TEXT, (top + height - bottom) / 2.0);
        let _ = write!(
            svg,
            r#"<text class="middle" transform="translate({at_x:.1} {at_y:.1}) rotate(-90)">{}</text>"#,
            escape(self.y)
        );
        for (index, line) in self.lines.iter().enumerate() {
            let colour = index % COLOURS;
            let places: Vec<_> =
                line.points.iter().filter(|p| p.1.is_finite()).map(|p| (place_x(p.0), place_y(p.1))).collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let _ = write!(svg, r#"<path class="line c{colour}" d="M{}"/>"#, path.join("L"));
            for ((x, y), margin) in line.intervals().filter(|(p, margin)| (p.1 + margin).is_finite() && *margin > 0.0) {
                let (low, high) = (place_y(y - margin), place_y(y + margin));
                let _ = write!(svg, r#"<path class="bar c{colour}" d="M{:.1} {low:.1}V{high:.1}"/>"#, place_x(x));
            }
            for (x, y) in places.iter().filter(|_| self.marks || places.len() == 1) {
                let _ = write!(svg, r#"<circle class="mark c{colour}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
            }
        }
        svg.push_str("</svg>");
        Some(svg)
    }

    /// Where each line's entry in the legend begins; none for a single line.
    fn legend(&self, width: f64) -> Vec<(f64, f64)> {
        let (mut x, mut row) = (2.0 * LETTER, 0.0);
        let lines = if self.lines.len() > 1 { self.lines.as_slice() } else { &[] };
        let place = |line: &Line<'_>| {
            let room = 36.0 + LETTER * line.label.chars().count() as f64;
            if x > 2.0 * LETTER && x + room > width {
                (x, row) = (2.0 * LETTER, row + 1.0);
            }
            let place = (x, row);
            x += room;
            place
        };
        lines.iter().map(place).collect()
    }

    fn legend_rows(&self, width: f64) -> f64 {
        self.legend(width).last().map_or(0.0, |(_, row)| row + 1.0)
    }

    fn write_legend(&self, svg: &mut String, width: f64) {
        for (index, ((x, row), line)) in self.legend(width).into_iter().zip(&self.lines).enumerate() {
            let y = (2.5 + row) * TEXT;
            let _ = write!(svg, r#"<path class="line c{}" d="M{x:.1} {:.1}h18"/>"#, index % COLOURS, y - 4.5);
            text(svg, "start", (x + 23.0, y), line.label);
        }
    }
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), content: &str) {
    let _ = write!(svg, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(content));
}

/// Text as HTML and SVG hold it.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An axis: from where to where, and what is marked.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// With about `wanted` marks over the range.
    fn new(range: RangeInclusive<f64>, logarithmic: bool, wanted: usize) -> Self {
        let (low, high) = range.into_inner();
        if logarithmic {
            let (low, high) = (low / 1.1, high * 1.1);
            let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
            // All of 1, 2 and 5 in each decade, or 1 alone, or 1 in every second one, ...
            let choices = [&[1.0, 2.0, 5.0][..], &[1.0]].into_iter().map(|digits| (digits, 1));
            let choices = choices.chain((2..).map(|stride| (&[1.0][..], stride)));
            for (digits, stride) in choices {
                let powers = decades.clone().filter(|power| power.rem_euclid(stride) == 0);
                let ticks = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
                let ticks: Vec<f64> = ticks.filter(|tick| (low..=high).contains(tick)).collect();
                if ticks.len() < 2 {
                    // Less than a decade: a linear axis tells more.
                    break;
                }
                if ticks.len() <= wanted.max(2) + 1 {
                    return Self { low, high, logarithmic, ticks };
                }
            }
        }
        // A single value lies in the middle.
        let half = low.abs().max(1.0) / 2.0;
        let (low, high) = if high > low { (low, high) } else { (low - half, high + half) };
        let span = high - low;
        let rough = span / wanted.max(2) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough);
        Self::linear(low, high, step.unwrap_or(10.0 * power))
    }

    /// With a mark at each multiple of `step`, from a multiple to a multiple.
    fn linear(low: f64, high: f64, step: f64) -> Self {
        let first = (low / step + 1e-9).floor();
        let last = (high / step - 1e-9).ceil().max(first + 1.0);
        let ticks: Vec<f64> = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { low: first * step, high: last * step, logarithmic: false, ticks }
    }

    /// With marks at whole numbers alone.
    fn whole(self) -> Self {
        let step = self.ticks.get(1).map_or(1.0, |second| second - self.ticks[0]);
        if step < 1.0 { Self::linear(self.low, self.high, 1.0) } else { self }
    }

    /// From the first value to the last, if they differ, rather than from mark to mark.
    fn tight(mut self, low: f64, high: f64) -> Self {
        if low < high {
            (self.low, self.high) = (low, high);
            self.ticks.retain(|tick| (low..=high).contains(tick));
        }
        self
    }

    /// How far along the axis a value lies, from 0 to 1.
    fn fraction(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.logarithmic { v.log10() } else { v };
        (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
    }

    fn labels(&self) -> Vec<(f64, String)> {
        let step = self.ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let label = |value: f64| {
            let size = if self.logarithmic { value } else { step.min(1e300) };
            if value.abs() >= 1e6 || (value != 0.0 && value.abs() < 1e-4) {
                format!("{value:.0e}")
            } else if value.abs() >= 1e4 && value % 1e3 == 0.0 {
                format!("{}k", value / 1e3)
            } else {
                let decimals = (-size.log10()).ceil().clamp(0.0, 6.0) as usize;
                format!("{:.decimals$}", value + 0.0)
            }
        };
        self.ticks.iter().map(|tick| (*tick, label(*tick))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(range: RangeInclusive<f64>, logarithmic: bool) -> Vec<String> {
        Axis::new(range, logarithmic, 6).labels().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn axes_have_round_numbers_and_hold_every_point() {
        assert_eq!(labels(1.0..=2500.0, false), ["0", "500", "1000", "1500", "2000", "2500"]);
        assert_eq!(labels(0.0..=70_000.0, false), ["0", "20k", "40k", "60k", "80k"]);
        assert_eq!(labels(14.7..=20.1, false), ["14", "15", "16", "17", "18", "19", "20", "21"]);
        assert_eq!(labels(0.031..=0.052, false), ["0.030", "0.035", "0.040", "0.045", "0.050", "0.055"]);
        assert_eq!(labels(0.02..=0.9, true), ["0.02", "0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(labels(1e-7..=2.0, true).len(), 4);
        assert_eq!(labels(3.0..=3.0, false).len(), 7);
        for (low, high) in [(0.0, 1.0), (-3.2, 4.9), (5.0, 5.0), (-2.0, -2.0), (1e-9, 3e-9), (0.0, 0.0), (7.0, 1e12)] {
            for logarithmic in [false, low > 0.0] {
                for wanted in [0, 3, 10] {
                    let axis = Axis::new(low..=high, logarithmic, wanted);
                    assert!((2..=16).contains(&axis.ticks.len()), "{low} {high} {logarithmic}: {:?}", axis.ticks);
                    for value in [low, high] {
                        assert!((-1e-6..=1.000_001).contains(&axis.fraction(value)), "{low} {high} {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_chart_names_its_lines_and_skips_what_is_not_finite() {
        let line = |label, points| Line { label, points, margins: Vec::new() };
        let chart = Chart {
            title: "a < b",
            x: "step",
            y: "loss",
            lines: vec![line("one", vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.5)]), line("two", vec![(1.0, 2.0)])],
            marks: false,
            logarithmic: false,
        };
        let svg = chart.svg((400.0, 300.0), false).unwrap();
        assert!(svg.contains("a &lt; b") && svg.contains(">one<") && svg.contains(">two<") && !svg.contains("NaN"));
        assert_eq!(svg.matches("<circle").count(), 1, "a single point is marked");
        let mut wide = vec![Line { margins: vec![0.25, 0.5], ..line("three", vec![(0.0, 1.0), (1.0, 2.0)]) }];
        wide.push(line("four", vec![(0.0, 1.5)]));
        let wide = Chart { lines: wide, ..chart };
        let svg = wide.svg((400.0, 300.0), false).unwrap();
        assert_eq!(svg.matches(r#"class="bar c0""#).count(), 2, "an interval at each point that has one");
        assert!(svg.contains(">2.5<") || svg.contains(">2.6<"), "the axis holds the intervals");
        let nothing = Chart { lines: vec![line("one", vec![(0.0, f64::INFINITY)])], ..wide };
        assert!(nothing.svg((400.0, 300.0), true).is_none());
    }
}
