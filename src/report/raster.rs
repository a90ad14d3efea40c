//! SVG to PNG.

use epaint_default_fonts::UBUNTU_LIGHT;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::error::{Error, Result};

/// Pixels a unit of the picture.
const SCALE: f32 = 2.0;
/// The font that is brought along, so that a picture is the same on every machine.
const FONT: &str = "Ubuntu";

/// The picture as PNG.
pub(super) fn png(svg: &str) -> Result<Vec<u8>> {
    let failed =
        |error: String| Error::unsupported("a figure as PNG", error, "its SVG and the page need no PNG");
    let mut options = Options { font_family: FONT.into(), ..Options::default() };
    options.fontdb_mut().load_font_data(UBUNTU_LIGHT.to_vec());
    options.fontdb_mut().set_sans_serif_family(FONT);
    let tree = Tree::from_str(svg, &options).map_err(|error| failed(error.to_string()))?;
    let size = tree.size();
    let (width, height) = ((size.width() * SCALE).ceil(), (size.height() * SCALE).ceil());
    let mut pixels = Pixmap::new(width as u32, height as u32)
        .ok_or_else(|| failed(format!("{width} x {height} pixels are too many")))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| failed(error.to_string()))
}
