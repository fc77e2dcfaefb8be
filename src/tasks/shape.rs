//! What a moving shape looks like, and how it is drawn.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::video::ClipFormat;

/// An outline, as a function of a point in units of the shape's radius.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outline {
    Disc,
    Square,
    Triangle,
    Ring,
    Cross,
    Bar,
    HalfDisc,
}

/// No outline reaches farther from its centre than this, in radii.
const REACH: f32 = 1.2;

/// Pixels over which a shape fades into the background.
const EDGE: f32 = 1.5;

impl Outline {
    pub(super) const ALL: [Self; 7] =
        [Self::Disc, Self::Square, Self::Triangle, Self::Ring, Self::Cross, Self::Bar, Self::HalfDisc];

    /// Distance to the edge, negative inside; beyond corners a little less than the true distance, which only rounds
    /// them by part of a pixel.
    fn distance(self, x: f32, y: f32) -> f32 {
        let within = |half_x: f32, half_y: f32| (x.abs() - half_x).max(y.abs() - half_y);
        match self {
            Self::Disc => (x * x + y * y).sqrt() - 1.0,
            Self::Square => within(0.8, 0.8),
            Self::Triangle => (0.866_025_4 * x.abs() - 0.5 * y - 0.5).max(y - 0.5),
            Self::Ring => ((x * x + y * y).sqrt() - 0.72).abs() - 0.28,
            Self::Cross => within(1.0, 0.33).min(within(0.33, 1.0)),
            Self::Bar => within(1.0, 0.4),
            Self::HalfDisc => ((x * x + y * y).sqrt() - 1.0).max(y),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disc => "disc",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Ring => "ring",
            Self::Cross => "cross",
            Self::Bar => "bar",
            Self::HalfDisc => "half-disc",
        }
    }
}

/// How the two colours of a shape are spread over it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Texture {
    Plain,
    Stripes,
    Checks,
    Gradient,
}

impl Texture {
    /// The share of the first colour at a point; `frequency` in waves a radius.
    fn share(self, x: f32, y: f32, frequency: f32) -> f32 {
        let wave = |u: f32| 1.0 - 4.0 * ((u * frequency).rem_euclid(1.0) - 0.5).abs();
        match self {
            Self::Plain => 1.0,
            Self::Stripes => (0.5 + 1.5 * wave(x)).clamp(0.0, 1.0),
            Self::Checks => (0.5 + 3.0 * wave(x) * wave(y)).clamp(0.0, 1.0),
            Self::Gradient => (0.5 + 0.5 * x).clamp(0.0, 1.0),
        }
    }
}

/// Everything about a shape's looks; all of it belongs to the task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    pub(super) outline: Outline,
    texture: Texture,
    frequency: f32,
    /// In units of the frame's shorter side.
    pub(super) radius: f32,
    /// Radians.
    angle: f32,
    /// Two colours and the background, in [-1, 1]; gray clips use the first channel.
    colours: [[f32; 3]; 2],
    background: [f32; 3],
}

impl Looks {
    /// Looks at random, for clips of 1 or 3 `channels`.
    pub(super) fn draw(rng: &mut ChaCha8Rng, channels: usize) -> Self {
        let outline = Outline::ALL[rng.random_range(0..Outline::ALL.len())];
        let texture = [Texture::Plain, Texture::Stripes, Texture::Checks, Texture::Gradient][rng.random_range(0..4)];
        let level = rng.random_range(-1.0..-0.4_f32);
        let tint: [f32; 3] = std::array::from_fn(|_| rng.random_range(-0.15..0.15));
        let background = tint.map(|t| (level + t).clamp(-1.0, 1.0));
        // The leading channel, of gray clips the only one, is at least 0.7 brighter than the background's level.
        let bright = rng.random_range(level + 1.1..=1.0_f32);
        let mut hue: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.0..1.0));
        hue[rng.random_range(0..channels)] = 1.0;
        let first = hue.map(|h| level + (bright - level) * h);
        let contrast = rng.random_range(0.5..0.85);
        let second = first.map(|c| level + (c - level) * contrast);
        Self {
            outline,
            texture,
            frequency: rng.random_range(0.5..0.9),
            radius: rng.random_range(0.22..0.35),
            angle: rng.random_range(0.0..std::f32::consts::TAU),
            colours: [first, second],
            background,
        }
    }

    /// Draws one frame of H*W*C values: the shape at `centre` (in units of the shorter side).
    pub(super) fn render(&self, centre: [f32; 2], format: &ClipFormat, frame: &mut [f32]) {
        let ClipFormat { height, width, channels, .. } = *format;
        match channels {
            1 => frame.fill(self.background[0]),
            _ => frame.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&self.background)),
        }
        let pixels = height.min(width) as f32;
        let (sin, cos) = self.angle.sin_cos();
        let radius = self.radius * pixels;
        let span = |centre: f32, limit: usize| {
            let reach = REACH * radius + EDGE;
            let first = (centre * pixels - reach).max(0.0) as usize;
            first.min(limit)..((centre * pixels + reach).max(0.0).ceil() as usize).min(limit)
        };
        let columns = span(centre[0], width);
        for row in span(centre[1], height) {
            let dy = (row as f32 + 0.5 - centre[1] * pixels) / radius;
            let line = &mut frame[row * width * channels..][..width * channels];
            for column in columns.clone() {
                let dx = (column as f32 + 0.5 - centre[0] * pixels) / radius;
                let (x, y) = (cos * dx + sin * dy, cos * dy - sin * dx);
                let cover = (0.5 - self.outline.distance(x, y) * radius / EDGE).clamp(0.0, 1.0);
                if cover > 0.0 {
                    let share = self.texture.share(x, y, self.frequency);
                    for (c, value) in line[column * channels..][..channels].iter_mut().enumerate() {
                        let colour = self.colours[1][c] + share * (self.colours[0][c] - self.colours[1][c]);
                        *value += cover * (colour - *value);
                    }
                }
            }
        }
    }
}
