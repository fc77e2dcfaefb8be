//! The header of a NumPy `.npy` file: a Python dict literal after a magic number and a length.

use std::path::Path;

use crate::{Error, Result};

/// The element types read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    U1,
    F4,
    F8,
}

impl Element {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U1 => 1,
            Self::F4 => 4,
            Self::F8 => 8,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
}

/// Parses the header; returns it and the bytes after it. The magic number has been seen already.
pub(super) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<(Header, &'a [u8])> {
    let short = || Error::file(path, "is cut short in its header", "copy or save it again");
    let length = |at: usize, size: usize| {
        let field = bytes.get(at..at + size).ok_or_else(short)?;
        Ok(field.iter().rev().fold(0usize, |value, &byte| value << 8 | usize::from(byte)))
    };
    let (start, length): (usize, usize) = match bytes.get(6).copied().ok_or_else(short)? {
        1 => (10, length(8, 2)?),
        2 | 3 => (12, length(8, 4)?),
        version => {
            return Err(Error::file(path, format!("has .npy format version {version}"), "save it with numpy.save"));
        }
    };
    let end = start.checked_add(length).ok_or_else(short)?;
    let text = bytes.get(start..end).ok_or_else(short)?;
    let header = Literal { rest: &String::from_utf8_lossy(text) }
        .dict()
        .ok_or_else(|| Error::file(path, "has a .npy header that cannot be understood", "save it with numpy.save"))?;
    Ok((header.check(path)?, &bytes[end..]))
}

/// The three fields as they stand in the file.
#[derive(Default)]
struct Fields {
    descr: Option<String>,
    fortran_order: Option<bool>,
    shape: Option<Vec<usize>>,
}

impl Fields {
    fn check(self, path: &Path) -> Result<Header> {
        let (Some(descr), Some(fortran_order), Some(shape)) = (self.descr, self.fortran_order, self.shape) else {
            return Err(Error::file(
                path,
                "has a .npy header without descr, fortran_order and shape",
                "save it with numpy.save",
            ));
        };
        let element = match descr.as_str() {
            "|u1" | "u1" | "<u1" | ">u1" => Element::U1,
            "<f4" => Element::F4,
            "<f8" => Element::F8,
            _ => {
                return Err(Error::file(
                    path,
                    format!("has elements of type {descr:?}"),
                    "save it as numpy.uint8 or as little-endian numpy.float32 or numpy.float64",
                ));
            }
        };
        if fortran_order {
            return Err(Error::file(path, "is in Fortran order", "save numpy.ascontiguousarray of it"));
        }
        Ok(Header { element, shape })
    }
}

/// A cursor over a Python literal.
struct Literal<'a> {
    rest: &'a str,
}

impl Literal<'_> {
    fn dict(mut self) -> Option<Fields> {
        let mut fields = Fields::default();
        self.take('{')?;
        while self.take('}').is_none() {
            let key = self.string()?;
            self.take(':')?;
            match key.as_str() {
                "descr" => fields.descr = Some(self.string()?),
                "fortran_order" => fields.fortran_order = Some(self.boolean()?),
                "shape" => fields.shape = Some(self.tuple()?),
                _ => return None,
            }
            if self.take(',').is_none() {
                self.take('}')?;
                break;
            }
        }
        self.rest.trim().is_empty().then_some(fields)
    }

    fn take(&mut self, symbol: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(symbol)?;
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        let quote = if self.rest.trim_start().starts_with('"') { '"' } else { '\'' };
        self.take(quote)?;
        let (text, rest) = self.rest.split_once(quote)?;
        self.rest = rest;
        Some(text.to_owned())
    }

    fn boolean(&mut self) -> Option<bool> {
        let text = self.rest.trim_start();
        let (value, rest) = match text.strip_prefix("False") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("True")?),
        };
        self.rest = rest;
        Some(value)
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        let mut numbers = Vec::new();
        self.take('(')?;
        while self.take(')').is_none() {
            let text = self.rest.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            numbers.push(text[..end].parse().ok()?);
            // Python 2 wrote long integers with an L.
            self.rest = text[end..].strip_prefix('L').unwrap_or(&text[end..]);
            if self.take(',').is_none() {
                self.take(')')?;
                break;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Option<Fields> {
        Literal { rest: text }.dict()
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let found = fields("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 16, 16), }      \n").unwrap();
        let header = found.check(Path::new("x")).unwrap();
        assert_eq!(header, Header { element: Element::F4, shape: vec![8, 16, 16] });
        let found = fields("{\"shape\":(3L,),\"descr\":\"|u1\",\"fortran_order\":True}").unwrap();
        assert_eq!((found.shape, found.fortran_order), (Some(vec![3]), Some(true)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "{",
            "{'descr'",
            "{'descr': }",
            "{'shape': (1, -2)}",
            "{'shape': (99999999999999999999999,)}",
            "{'fortran_order': 1}",
            "{'other': 'x'}",
            "{} x",
            "{'descr': [('a', '<f4')]}",
        ] {
            assert!(fields(text).is_none(), "{text}");
        }
    }
}
