//! Laws of motion of the moving shapes.

use std::f32::consts::TAU;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Where a shape's centre is at time t, given its start p0.
///
/// Lengths are in units of the frame's shorter side, x to the right and y down; t runs from 0 at the first frame to 1 at
/// the last. All parameters belong to the task, so that whoever knows the task can tell the motion from the first frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// `p = p0 + v t`
    Linear {
        /// v, a clip's whole displacement.
        velocity: [f32; 2],
    },
    /// `p = fold(p0 + v t)`: reflected at the frame's borders (a shape's margin inside them).
    Bouncing {
        /// v, before any reflection.
        velocity: [f32; 2],
    },
    /// `p = c + R(w t) (p0 - c)`, R a rotation; every start lies at distance r from c, so that the first frame tells
    /// the phase.
    Circular {
        /// c.
        centre: [f32; 2],
        /// r.
        radius: f32,
        /// w, radians a clip; its sign is the sense of rotation.
        turn: f32,
    },
    /// `p = p0 + v t + s tri(n t)`, tri the triangle wave of period 1 and height 1 that rises from 0.
    ZigZag {
        /// v.
        velocity: [f32; 2],
        /// s, across v.
        sway: [f32; 2],
        /// n, zig-zags a clip.
        waves: f32,
    },
    /// `p = p0 + v t + a t^2 / 2`
    Accelerating {
        /// v, the velocity at the start.
        velocity: [f32; 2],
        /// a.
        acceleration: [f32; 2],
    },
}

/// The rectangle in which a shape's centre moves: from `margin` to `extent - margin` along each axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arena {
    /// Width and height of the frame in units of its shorter side.
    pub(super) extent: [f32; 2],
    pub(super) margin: f32,
}

impl Arena {
    fn fold(&self, point: [f32; 2]) -> [f32; 2] {
        std::array::from_fn(|axis| {
            let room = self.extent[axis] - 2.0 * self.margin;
            let way = (point[axis] - self.margin).rem_euclid(2.0 * room);
            self.margin + way.min(2.0 * room - way)
        })
    }
}

impl Law {
    /// A task's law, drawn at random; all kinds are equally likely.
    pub(super) fn draw(rng: &mut ChaCha8Rng, arena: &Arena) -> Self {
        let direction = rng.random_range(0.0..TAU);
        let along = |length: f32, angle: f32| [length * angle.cos(), length * angle.sin()];
        match rng.random_range(0..5) {
            0 => Self::Linear { velocity: along(rng.random_range(0.3..0.5), direction) },
            1 => Self::Bouncing { velocity: along(rng.random_range(0.7..1.4), direction) },
            2 => {
                let radius = rng.random_range(0.15..0.5 - arena.margin);
                let inside = arena.margin + radius;
                let centre = arena.extent.map(|extent| inside + (extent - 2.0 * inside) * rng.random::<f32>());
                let sense = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
                Self::Circular { centre, radius, turn: sense * TAU * rng.random_range(0.4..1.1) }
            }
            3 => {
                let side = if rng.random_bool(0.5) { 0.25 } else { -0.25 };
                Self::ZigZag {
                    velocity: along(rng.random_range(0.25..0.35), direction),
                    sway: along(rng.random_range(0.1..0.18), direction + TAU * side),
                    waves: rng.random_range(1.0..2.0),
                }
            }
            _ => Self::Accelerating {
                velocity: along(rng.random_range(0.05..0.25), direction),
                acceleration: along(rng.random_range(0.3..0.6), rng.random_range(0.0..TAU)),
            },
        }
    }

    /// A clip's start: anywhere from where the shape stays inside the arena; on the circle if the law is circular.
    pub(super) fn draw_start(&self, rng: &mut ChaCha8Rng, arena: &Arena) -> [f32; 2] {
        if let Self::Circular { centre, radius, .. } = *self {
            let phase = rng.random_range(0.0..TAU);
            return [centre[0] + radius * phase.cos(), centre[1] + radius * phase.sin()];
        }
        let (mut low, mut high) = ([0.0_f32; 2], [0.0_f32; 2]);
        if !matches!(self, Self::Bouncing { .. }) {
            for step in 0..=16 {
                let offset = self.offset(step as f32 / 16.0);
                for axis in 0..2 {
                    low[axis] = low[axis].min(offset[axis]);
                    high[axis] = high[axis].max(offset[axis]);
                }
            }
        }
        std::array::from_fn(|axis| {
            let first = arena.margin - low[axis];
            let last = arena.extent[axis] - arena.margin - high[axis];
            first + (last - first) * rng.random::<f32>()
        })
    }

    /// The centre at time `t` of a shape that started at `start`.
    pub(super) fn at(&self, start: [f32; 2], t: f32, arena: &Arena) -> [f32; 2] {
        if let Self::Circular { centre, turn, .. } = *self {
            let (sin, cos) = (turn * t).sin_cos();
            let [x, y] = [start[0] - centre[0], start[1] - centre[1]];
            return [centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y];
        }
        let offset = self.offset(t);
        let point = [start[0] + offset[0], start[1] + offset[1]];
        if matches!(self, Self::Bouncing { .. }) { arena.fold(point) } else { point }
    }

    /// The displacement at time `t` where it does not depend on the start; reflections aside.
    fn offset(&self, t: f32) -> [f32; 2] {
        match *self {
            Self::Linear { velocity } | Self::Bouncing { velocity } => velocity.map(|v| v * t),
            Self::ZigZag { velocity, sway, waves } => {
                let phase = (waves * t + 0.25).fract();
                let wave = 1.0 - 4.0 * (phase - 0.5).abs();
                [velocity[0] * t + sway[0] * wave, velocity[1] * t + sway[1] * wave]
            }
            Self::Accelerating { velocity, acceleration } => {
                std::array::from_fn(|i| velocity[i] * t + acceleration[i] * t * t / 2.0)
            }
            // A rotation is no displacement common to all starts.
            Self::Circular { .. } => [0.0; 2],
        }
    }

    /// The words for all laws.
    pub(super) const NAMES: [&'static str; 5] = ["linear", "bouncing", "circular", "zig-zag", "accelerating"];

    /// A word for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Bouncing { .. } => "bouncing",
            Self::Circular { .. } => "circular",
            Self::ZigZag { .. } => "zig-zag",
            Self::Accelerating { .. } => "accelerating",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_law_starts_at_its_start_and_stays_inside() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for i in 0..2000 {
            let arena = Arena { extent: [1.0 + (i % 3) as f32 * 0.5, 1.0], margin: 0.1 + 0.1 * (i % 10) as f32 / 10.0 };
            let law = Law::draw(&mut rng, &arena);
            let start = law.draw_start(&mut rng, &arena);
            let first = law.at(start, 0.0, &arena);
            assert!((0..2).all(|a| (first[a] - start[a]).abs() < 1e-5), "{law:?} {start:?} {first:?}");
            assert!(Law::NAMES.contains(&law.name()));
            for step in 0..=40 {
                let point = law.at(start, step as f32 / 40.0, &arena);
                for axis in 0..2 {
                    let (low, high) = (arena.margin - 0.02, arena.extent[axis] - arena.margin + 0.02);
                    assert!((low..=high).contains(&point[axis]), "{law:?} {start:?} {point:?}");
                }
            }
        }
    }

    #[test]
    fn laws_by_hand() {
        let arena = Arena { extent: [1.0, 1.0], margin: 0.0 };
        let near = |a: [f32; 2], b: [f32; 2]| assert!((0..2).all(|i| (a[i] - b[i]).abs() < 1e-5), "{a:?} {b:?}");
        near(Law::Bouncing { velocity: [1.0, -0.5] }.at([0.5, 0.25], 1.0, &arena), [0.5, 0.25]);
        let circle = Law::Circular { centre: [0.5, 0.5], radius: 0.25, turn: TAU / 2.0 };
        near(circle.at([0.75, 0.5], 0.5, &arena), [0.5, 0.75]);
        let zigzag = Law::ZigZag { velocity: [0.4, 0.0], sway: [0.0, 0.2], waves: 1.0 };
        near(zigzag.at([0.1, 0.5], 0.25, &arena), [0.2, 0.7]);
        near(zigzag.at([0.1, 0.5], 0.75, &arena), [0.4, 0.3]);
        let fall = Law::Accelerating { velocity: [0.1, 0.0], acceleration: [0.0, 0.8] };
        near(fall.at([0.0, 0.0], 0.5, &arena), [0.05, 0.1]);
    }
}
