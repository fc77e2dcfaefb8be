//! Line charts as SVG.

use std::io::Write;
use std::path::Path;

use plotters::prelude::*;

use crate::{Error, Result};

/// One line of a chart.
pub(super) struct Line<'a> {
    pub label: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// What a chart shows.
pub(super) struct Chart<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub lines: Vec<Line<'a>>,
    /// Whether each point is marked.
    pub marks: bool,
    pub logarithmic: bool,
}

const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 104, 30), RGBColor(90, 140, 70), RGBColor(120, 90, 160)];

impl Chart<'_> {
    /// Writes the chart, if it has a point at all.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let points = || self.lines.iter().flat_map(|line| &line.points).filter(|p| p.1.is_finite());
        if points().next().is_none() {
            return Ok(());
        }
        let bounds = |value: fn(&(f64, f64)) -> f64| {
            let (low, high) = points()
                .map(value)
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
            let room = ((high - low) * 0.05).max(1e-9 * high.abs().max(1e-9));
            (low, high, room)
        };
        let (x_low, x_high, x_room) = bounds(|p| p.0);
        let (y_low, y_high, y_room) = bounds(|p| p.1);
        let mut svg = String::new();
        // Within a decade a logarithmic axis has too few labels to read.
        let drawn = if self.logarithmic && y_low > 0.0 && y_high > 10.0 * y_low {
            self.draw(&mut svg, x_low..x_high + x_room, (y_low * 0.9..y_high * 1.1).log_scale())
        } else {
            self.draw(&mut svg, x_low..x_high + x_room, y_low - y_room..y_high + y_room)
        };
        drawn.map_err(|e| Error::file(path, format!("cannot be drawn ({e})"), "report this with the metrics file"))?;
        crate::atomic::write(path, |out| out.write_all(svg.as_bytes()))
    }

    fn draw<Y>(
        &self,
        svg: &mut String,
        x: std::ops::Range<f64>,
        y: Y,
    ) -> std::result::Result<(), Box<dyn std::error::Error>>
    where
        Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
        Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        let root = SVGBackend::with_string(svg, (760, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(14)
            .caption(self.title, ("sans-serif", 18))
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .light_line_style(RGBColor(240, 240, 240))
            .bold_line_style(RGBColor(215, 215, 215))
            .max_light_lines(0)
            .x_labels(11)
            .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(("sans-serif", 13))
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let points = line.points.iter().copied().filter(|p| p.1.is_finite());
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.clone(), style))?
                .label(line.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            if self.marks {
                chart.draw_series(points.map(|p| Circle::new(p, 3, colour.filled())))?;
            }
        }
        if self.lines.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(190, 190, 190))
                .label_font(("sans-serif", 13))
                .draw()?;
        }
        root.present()?;
        Ok(())
    }
}
