//! What a GPU alone has: the products of a layer with their epilogues, beside cuBLASLt's, the gate, and what the device can do at most.

use super::kernels::Only;
use super::report::{Ceilings, Measured, PeerTime};
use super::shapes::Shape;
use super::stopwatch::Passes;
use crate::backend::Side;
use crate::backend::cuda::EventClock;
use crate::backend::cuda::linear::TileTable;
use crate::backend::cuda::peak::{Vendor, time_copy};
use crate::backend::cuda::tile_search::{LayerProduct, ProductShape, time_gate, time_product};
use crate::error::Result;

/// Rows, columns and depth of the product that is the ceiling of all.
const LARGEST: usize = 8_192;
/// Bytes of the copy that is the ceiling of all: several times any level-2 cache.
const COPIED: usize = 1 << 28;

/// The products of a layer of a T5, forward and backward, by name; `is_gated` is of its feed-forward, else it has ReLU.
pub(crate) fn layer_products(
    [width, total, inner]: [usize; 3],
    is_gated: bool,
    [encoder, decoder]: [usize; 2],
) -> Vec<(&'static str, ProductShape)> {
    let first = if is_gated { LayerProduct::Project } else { LayerProduct::Relu };
    let last = if is_gated { LayerProduct::Plain } else { LayerProduct::ReluBackward };
    let stacked = if is_gated { 2 * inner } else { inner };
    let sides = [("encoder", encoder), ("decoder", decoder)];
    let of_side = |(side, rows): (&str, usize)| {
        let named = |encoder, decoder| if side == "encoder" { encoder } else { decoder };
        let mut products = vec![
            (named("encoder qkv", "decoder qkv"), LayerProduct::Project, 3 * total, width),
            (named("encoder output", "decoder output"), LayerProduct::Add, width, total),
            (named("encoder feed-forward in", "decoder feed-forward in"), first, stacked, width),
            (named("encoder feed-forward out", "decoder feed-forward out"), LayerProduct::Add, width, inner),
            (named("encoder feed-forward out", "decoder feed-forward out"), last, inner, width),
            (
                named("encoder feed-forward in", "decoder feed-forward in"),
                LayerProduct::NormBackward,
                width,
                stacked,
            ),
            (named("encoder output", "decoder output"), LayerProduct::Plain, total, width),
            (named("encoder qkv", "decoder qkv"), LayerProduct::NormBackward, width, 3 * total),
        ];
        if side == "decoder" {
            products.push(("decoder cross query", LayerProduct::Project, total, width));
            products.push(("decoder cross query", LayerProduct::NormBackward, width, total));
        }
        products.into_iter().map(move |(name, product, n, k)| (name, ProductShape { product, rows, n, k }))
    };
    sides.into_iter().flat_map(of_side).collect()
}

/// The name of a product among kernels.
fn kernel(name: &str, product: LayerProduct) -> String {
    let epilogue = match product {
        LayerProduct::Project => "project",
        LayerProduct::Relu => "relu",
        LayerProduct::Add => "add",
        LayerProduct::ReluBackward => "relu_backward",
        LayerProduct::NormBackward => "norm_backward",
        LayerProduct::Plain => "backward",
    };
    format!("linear/{}/{epilogue}", name.replace([' ', '-'], "_"))
}

/// Measures the products of a layer with ReLU, each beside the vendor's, and the gate at its width.
///
/// # Errors
/// What goes wrong on the device.
pub(crate) fn measure_products(
    clock: &mut EventClock<'_>,
    vendor: Option<&Vendor>,
    table: &TileTable,
    shape: &Shape,
    only: &Only,
    repeats: usize,
    found: &mut dyn FnMut(Measured),
) -> Result<()> {
    let batch = shape.batch()?;
    let rows = [batch.rows(Side::Encoder), batch.rows(Side::Decoder)];
    let sizes = [shape.width, shape.heads().total(), shape.inner];
    for (name, product) in layer_products(sizes, false, rows) {
        let kernel = kernel(name, product.product);
        if !only.wants(&kernel) {
            continue;
        }
        let (times, tile) = time_product(clock, table, product, repeats)?;
        let (operations, bytes) = (product.operations() as u64, product.bytes() as u64);
        let mut measured = Measured::new(&shape.name, &kernel, operations, bytes, Passes::from(&times));
        measured.tile = Some(tile.to_string());
        if let Some(vendor) = vendor {
            let sizes = [product.rows, product.n, product.k];
            let times = vendor.time(clock, sizes, product.product.is_backward(), repeats)?;
            let Passes { cold_us, warm_us } = Passes::from(&times);
            measured.peers.push(PeerTime { peer: "cuBLASLt".to_owned(), cold_us, warm_us });
        }
        found(measured);
    }
    let [rows, _] = rows;
    let numbers = rows * shape.inner;
    // z and a; or z, d_a and dz with the inner product of each row.
    for (kernel, backward, bytes) in
        [("gate/forward", false, 6 * numbers), ("gate/backward", true, 10 * numbers + 4 * rows)]
    {
        if only.wants(kernel) {
            let times = time_gate(clock, [rows, shape.inner], backward, repeats)?;
            found(Measured::new(&shape.name, kernel, 0, bytes as u64, Passes::from(&times)));
        }
    }
    Ok(())
}

/// What the device can do at most: the vendor's largest product, or why there is none, and a copy.
///
/// # Errors
/// What goes wrong on the device.
pub(crate) fn ceilings(
    clock: &mut EventClock<'_>,
    vendor: std::result::Result<&Vendor, &str>,
    repeats: usize,
) -> Result<Ceilings> {
    let mut ceilings = Ceilings::default();
    match vendor {
        Ok(vendor) => {
            let times = vendor.time(clock, [LARGEST; 3], false, repeats)?;
            let operations = 2.0 * (LARGEST as f64).powi(3);
            ceilings.product_tflop_per_s = Some(operations / Passes::from(&times).warm_us.p50 / 1e6);
            ceilings.product = format!("cuBLASLt, {LARGEST} x {LARGEST} x {LARGEST} in bf16");
        }
        Err(why) => ceilings.product = format!("not measured: {why}"),
    }
    let times = time_copy(clock, COPIED, repeats)?;
    ceilings.copy_gb_per_s = Some(2.0 * COPIED as f64 / Passes::from(&times).cold_us.p50 / 1e3);
    ceilings.copy = format!("{COPIED} bytes within the device, read and written");
    Ok(ceilings)
}
