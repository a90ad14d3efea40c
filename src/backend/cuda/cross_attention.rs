//! Cross attention of T decoder rows over R encoder rows: absorbed into the encoder's rows where targets are short, by
//! `kernels/cross_attention.cu`, and through projected keys and values, by `kernels/attention.cu`, where they are long.

use std::sync::Arc;

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::arguments::attention::AttentionArguments;
use super::arguments::cross_attention::{
    CrossArguments, MOST_LAYERS, ProjectedArguments, SLICE, SourceArguments,
};
use super::attention::{MOST_SHORT_ROWS, Shape, check_width};
use super::kernels::{Arguments, Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_aligned, check_length};
use super::rows::{Operand, Rows, WIDTH_MULTIPLE, Weight};
use super::sequences::PairedSequences;
use super::{ATTENTION_TILE, Cuda, Precision};
use crate::backend::{Backend, Batch, CrossAttention, Format, Heads, Mask, Scope, Side};
use crate::error::{Error, Result};

/// What cross attention's backward needs beside q, h and o.
#[derive(Debug)]
pub struct CrossKept(Way);

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one a layer, and moved once
enum Way {
    Absorbed {
        /// q' \[T, H·D\], which the gradient of the encoder's rows keeps beyond the layer's backward pass.
        absorbed_q: Arc<Rows>,
        /// The scores of each example's t·H × n pairs; in f32 their softmax.
        scores: Buffer<f32>,
        /// Each row's and tile's maximum and sum of exponentials; none in f32.
        sums: Buffer<f32>,
    },
    Plain {
        /// \[R, H·K\] each.
        k: Rows,
        v: Rows,
        log_sum_exp: Rows,
    },
}

/// The most targets of an example that are absorbed: what is kept of a target, H·D numbers, grows with them, and from here on
/// keys and values are fewer.
const MOST_TARGETS: usize = 8;

/// Target rows of an example that a shape bucket has room for: few buckets. Up to some, cross attention is absorbed and self
/// attention short.
pub(super) fn target_room(longest: usize, decoder_rows: usize) -> usize {
    [MOST_TARGETS / 2, MOST_TARGETS, MOST_SHORT_ROWS]
        .into_iter()
        .find(|&room| longest <= room)
        .unwrap_or(decoder_rows.max(longest))
}

/// Whether scoring against the encoder's rows themselves costs less than projecting them to keys and values, by the room
/// that the batch has alone: one captured graph serves all batches of that room.
fn absorbs(batch: &Batch, heads: Heads, depth: usize) -> bool {
    let (sources, targets, longest) =
        (batch.rows(Side::Encoder), batch.rows(Side::Decoder), batch.longest_target());
    let absorbed = heads.count * depth * (longest * sources + targets * heads.width);
    let plain = sources * heads.total() * (depth + longest);
    longest <= MOST_TARGETS && absorbed <= plain
}

impl CrossKept {
    pub(super) fn new(cuda: &Cuda, batch: &Batch, cross: &CrossAttention<'_, Cuda>, q: &Rows) -> Self {
        let (sources, targets, heads) = (batch.rows(Side::Encoder), batch.rows(Side::Decoder), cross.heads);
        let depth = cross.w_k.input;
        Self(if absorbs(batch, heads, depth) {
            let room = Room::of(batch, heads, depth);
            let sums = if cuda.precision() == Precision::F32 { 0 } else { 2 * room.sums() };
            Way::Absorbed {
                absorbed_q: q.widened.clone().unwrap_or_else(|| {
                    Arc::new(cuda.activation(targets, heads.count * depth, Format::Operand))
                }),
                scores: cuda.allocate(room.pairs()),
                sums: cuda.allocate(sums),
            }
        } else {
            Way::Plain {
                k: cuda.activation(sources, heads.total(), Format::Operand),
                v: cuda.activation(sources, heads.total(), Format::Operand),
                log_sum_exp: cuda.activation(targets, heads.count, Format::Float),
            }
        })
    }

    /// Whether the encoder's rows themselves are scored.
    pub fn is_absorbed(&self) -> bool {
        matches!(self.0, Way::Absorbed { .. })
    }
}

/// The gradient of the encoder's rows: what each absorbed layer's part is made of, until all are summed at once, and the sum of the
/// parts of layers that are not absorbed.
#[derive(Debug)]
pub struct SourceGradient {
    width: usize,
    parts: Vec<Part>,
    sum: Option<Rows>,
}

/// An absorbed layer's part: ds^T q' + (p·mask)^T d_mixed.
#[derive(Debug)]
struct Part {
    room: Room,
    absorbed_q: Arc<Rows>,
    d_mixed: Arc<Rows>,
    ds: Operand,
    p: Operand,
}

impl SourceGradient {
    pub(super) fn new(width: usize) -> Self {
        Self { width, parts: Vec::new(), sum: None }
    }

    /// D.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The sum of what is not absorbed, from zero on.
    fn sum_mut(&mut self, cuda: &Cuda, batch: &Batch) -> &mut Rows {
        let width = self.width;
        self.sum.get_or_insert_with(|| cuda.zeros(batch.rows(Side::Encoder), width))
    }

    /// Sums all parts, in order, into rows that may hold anything.
    pub(super) fn sum(self, cuda: &Cuda, batch: &Batch, rows: &mut Rows) -> Result<()> {
        if let Some(sum) = self.sum {
            *rows = sum;
        } else if self.parts.is_empty() {
            *rows = cuda.zeros(batch.rows(Side::Encoder), self.width);
            return Ok(());
        } else {
            return cuda.sum_parts(batch, &self.parts, rows, false);
        }
        cuda.sum_parts(batch, &self.parts, rows, true)
    }
}

/// Where a layer's part of d_h is made from: ds, p·mask, q' and d_mixed.
type Layer = [u64; 4];

/// Blocks that a product of heads should have at least: about the multiprocessors of a GPU of a data centre.
const BLOCKS: usize = 108;
/// Shared memory of a block in bytes: the products' stages, and behind them the log-sum-exp and delta of 64 rows.
const SHARED: u32 = 48 * 1024 + 2 * 64 * 4;
/// The same where the product before is made too: its stages, a tile of the weight behind it, and its result.
const SHARED_PROJECTED: u32 = (48 + 16 + 8) * 1024;
/// The widest head whose product is made with the one behind it.
const WIDEST_PROJECTED: usize = 64;

/// What the grids and buffers of the absorbed way are made for.
#[derive(Clone, Copy, Debug)]
struct Room {
    examples: usize,
    sources: usize,
    targets: usize,
    longest: usize,
    tiles: usize,
    heads: Heads,
    /// D.
    depth: usize,
}

impl Room {
    fn of(batch: &Batch, heads: Heads, depth: usize) -> Self {
        let (examples, sources) = (batch.examples(), batch.rows(Side::Encoder));
        Self {
            examples,
            sources,
            targets: batch.rows(Side::Decoder),
            longest: batch.longest_target(),
            tiles: sources / ATTENTION_TILE + examples,
            heads,
            depth,
        }
    }

    /// Numbers that the pairs of all examples take, with the gaps between examples.
    fn pairs(&self) -> usize {
        (self.sources.next_multiple_of(8) + 8 * self.examples) * self.longest * self.heads.count
    }

    /// Pairs of a maximum and a sum, one a row and tile.
    fn sums(&self) -> usize {
        self.tiles * self.longest * self.heads.count
    }

    fn columns(&self) -> usize {
        self.depth.div_ceil(SLICE)
    }

    /// Blocks of 64 rows that an example may have.
    fn parts(&self) -> usize {
        (self.longest * self.heads.count).div_ceil(64)
    }

    /// Partial inner products of a target row.
    fn inner_parts(&self, precision: Precision) -> usize {
        match precision {
            Precision::Bf16 => self.heads.count * self.heads.width.div_ceil(64),
            Precision::F32 => self.heads.count,
        }
    }
}

/// The kernels' launches over one batch; `of` has the addresses and numbers that all of them share.
struct Launches<'a> {
    kernels: &'a Kernels,
    precision: Precision,
    room: Room,
    of: CrossArguments,
}

impl Launches<'_> {
    /// What all launches read or write rows of, by name. Pairs begin at multiples of eight and lie a multiple of eight apart, so that
    /// rows of them are aligned where the whole is.
    fn shared_operands(&self) -> [(&'static str, u64); 10] {
        [
            ("h", self.of.h),
            ("absorbed_q", self.of.absorbed_q),
            ("scores", self.of.scores),
            ("sums", self.of.sums),
            ("wide", self.of.d_mixed),
            ("wide, its second half", self.of.d_absorbed_q),
            ("o", self.of.o),
            ("d_o", self.of.d_o),
            ("pairs", self.of.p),
            ("d_h", self.of.d_h),
        ]
    }

    fn launch<A: Arguments>(&self, names: [&'static str; 2], grid: [usize; 3], arguments: A) -> Result<()> {
        let (name, shared) = match self.precision {
            Precision::Bf16 => (names[0], SHARED),
            Precision::F32 => (names[1], 0),
        };
        let kernel = Kernel { file: "cross_attention", name };
        // SAFETY: whoever made `of` checked every operand against the room, which the grids follow; the kernels read counts
        // from the descriptor and leave what lies behind them alone.
        unsafe { self.kernels.launch(kernel, grid.map(|blocks| blocks as u32), 128, shared, &arguments) }
    }

    /// Rows of H·K columns to rows of H·D.
    fn widen(&self, from: u64, weight: u64, to: u64) -> Result<()> {
        let rows = self.room.targets;
        let blocks = if self.precision == Precision::Bf16 { rows.div_ceil(64) } else { rows };
        let grid = [self.room.columns(), blocks, self.room.heads.count];
        let arguments = CrossArguments { from, weight, to, ..self.of };
        self.launch(["cross_widen_bf16", "cross_widen_f32"], grid, arguments)
    }

    /// Rows of H·D columns to rows of H·K, and where `q` is given their inner products with its rows.
    fn narrow(&self, from: u64, weight: u64, to: u64, q: u64, inner: u64) -> Result<()> {
        let Room { targets, heads, .. } = self.room;
        let columns = heads.width.div_ceil(64);
        let blocks = |fragments: usize| targets.div_ceil(16 * fragments) * columns * heads.count;
        let fragments = [4, 2].into_iter().find(|&fragments| blocks(fragments) >= BLOCKS).unwrap_or(1);
        let grid = match self.precision {
            Precision::Bf16 => [columns, targets.div_ceil(16 * fragments), heads.count],
            Precision::F32 => [1, targets, heads.count],
        };
        let arguments = CrossArguments { from, weight, to, q, inner, fragments: fragments as i32, ..self.of };
        self.launch(["cross_narrow_bf16", "cross_narrow_f32"], grid, arguments)
    }

    /// One block a tile of encoder rows and 64 rows of scores; in f32 one a row of scores.
    fn score(&self, names: [&'static str; 2]) -> Result<()> {
        let grid = match self.precision {
            Precision::Bf16 => [self.room.tiles, self.room.parts(), 1],
            Precision::F32 => [self.room.targets * self.room.heads.count, 1, 1],
        };
        self.launch(names, grid, self.of)
    }

    fn mix(&self, to: u64) -> Result<()> {
        let grid = match self.precision {
            Precision::Bf16 => [self.room.columns(), self.room.parts(), self.room.examples],
            Precision::F32 => [self.room.columns(), self.room.targets * self.room.heads.count, 1],
        };
        let arguments = CrossArguments { to, ..self.of };
        self.launch(["cross_mix_bf16", "cross_mix_f32"], grid, arguments)
    }

    /// d_q', as `mix` gives mixed.
    fn mix_backward(&self) -> Result<()> {
        let grid = match self.precision {
            Precision::Bf16 => [self.room.columns(), self.room.parts(), self.room.examples],
            Precision::F32 => [self.room.columns(), self.room.targets * self.room.heads.count, 1],
        };
        self.launch(["cross_backward_bf16", "cross_backward_f32"], grid, self.of)
    }

    /// d_h, the sum of what these layers bring, or with `adds` what was there and that sum.
    fn sum_sources(&self, layers: &[Layer], adds: bool) -> Result<()> {
        let tiles = match self.precision {
            Precision::Bf16 => self.room.tiles,
            Precision::F32 => self.room.sources,
        };
        for (index, layers) in layers.chunks(MOST_LAYERS).enumerate() {
            let (mut weights, mut rows) = ([0; 2 * MOST_LAYERS], [0; 2 * MOST_LAYERS]);
            for (i, &[ds, p, absorbed_q, d_mixed]) in layers.iter().enumerate() {
                (weights[2 * i], weights[2 * i + 1]) = (ds, p);
                (rows[2 * i], rows[2 * i + 1]) = (absorbed_q, d_mixed);
            }
            let (layers, adds) = (layers.len() as i32, i32::from(adds || index > 0));
            let arguments = SourceArguments { of: self.of, weights, rows, layers, adds };
            let grid = [self.room.columns(), tiles, 1];
            self.launch(["cross_sources_bf16", "cross_sources_f32"], grid, arguments)?;
        }
        Ok(())
    }

    /// o, behind q'; `mixed` \[T, H·D\] is scratch.
    fn forward(&self, w_v: u64, mixed: u64, o: u64) -> Result<()> {
        self.score(["cross_scores_bf16", "cross_scores_f32"])?;
        self.mix(mixed)?;
        self.narrow(mixed, w_v, o, 0, 0)
    }

    /// Behind d_mixed: what d_h is summed from, and d_q with its inner products where there is a d_q'.
    fn backward(&self, q: u64, w_k: u64, d_q: u64, inner: u64) -> Result<()> {
        let names = ["cross_scores_backward_bf16", "cross_scores_backward_f32"];
        self.score(names)?;
        if self.of.d_absorbed_q == 0 {
            return Ok(());
        }
        self.mix_backward()?;
        self.narrow(self.of.d_absorbed_q, w_k, d_q, if inner == 0 { 0 } else { q }, inner)
    }
}

/// Fails unless a weight has that shape.
fn check_weight(what: &str, weight: &Weight, [out, input]: [usize; 2]) -> Result<()> {
    if [weight.out, weight.input] == [out, input] {
        return Ok(());
    }
    let found = format!("[{}, {}]", weight.out, weight.input);
    Err(Error::tensor(what, format!("[{out}, {input}]"), found, ""))
}

fn numbers_of(room: &Room) -> CrossArguments {
    CrossArguments {
        heads: room.heads.count as i32,
        width: room.heads.width as i32,
        depth: room.depth as i32,
        longest: room.longest as i32,
        ..CrossArguments::default()
    }
}

fn shape(cross: &CrossAttention<'_, Cuda>) -> Shape {
    Shape {
        query_side: Side::Decoder,
        key_side: Side::Encoder,
        scope: Scope::All,
        heads: cross.heads,
        q_stride: cross.heads.total(),
        kv_stride: cross.heads.total(),
        reach: 0,
    }
}

impl Cuda {
    /// The launches of the absorbed way, with what forward and backward share.
    fn absorbed(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        h: &Rows,
        (absorbed_q, scores, sums): (&Rows, &Buffer<f32>, &Buffer<f32>),
    ) -> Result<Launches<'_>> {
        let room = Room::of(batch, cross.heads, cross.w_k.input);
        check_width(cross.heads.width, "leave --device out to compute on the CPU")?;
        h.check("h", room.sources, room.depth)?;
        absorbed_q.check("q'", room.targets, room.heads.count * room.depth)?;
        let of = CrossArguments {
            batch: self.describe(batch)?.address(self)?,
            h: h.operand_address(self)?,
            absorbed_q: absorbed_q.operand_address(self)?,
            scores: self.address_of(scores)?,
            sums: self.address_of(sums)?,
            mask: self.mask(cross.mask)?,
            ..numbers_of(&room)
        };
        Ok(Launches { kernels: self.kernels(), precision: self.precision(), room, of })
    }

    /// Counts the operations of `heads` products of heads and `pairs` products over the pairs.
    fn count_absorbed(&self, room: &Room, heads: usize, pairs: usize) {
        let Room { examples, sources, targets, depth, .. } = *room;
        let of_heads = targets * room.heads.total() * depth;
        let of_pairs = targets * room.heads.count * (sources / examples.max(1)) * depth;
        self.count(2 * (heads * of_heads + pairs * of_pairs) as u64);
    }

    pub(super) fn launch_cross_attention(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        q: &Rows,
        h: &Rows,
        o: &mut Rows,
        kept: &mut CrossKept,
    ) -> Result<()> {
        let (targets, total) = (batch.rows(Side::Decoder), cross.heads.total());
        q.check("q", targets, total)?;
        o.check("o", targets, total)?;
        match &mut kept.0 {
            Way::Absorbed { absorbed_q, scores, sums } => {
                let mut launches = self.absorbed(batch, cross, h, (absorbed_q, scores, sums))?;
                let room = launches.room;
                let mixed = self.activation(targets, room.heads.count * room.depth, Format::Operand);
                // In f32 the dropped probabilities lie beside the kept ones.
                let p = self.operand(if self.precision() == Precision::F32 { room.pairs() } else { 0 });
                launches.of.p = p.address(self)?;
                self.count_absorbed(&room, 1 + usize::from(q.widened.is_none()), 2);
                if q.widened.is_none() {
                    launches.widen(
                        q.operand_address(self)?,
                        cross.w_k.operand_address(self)?,
                        launches.of.absorbed_q,
                    )?;
                }
                let mixed = mixed.operand_address(self)?;
                launches.forward(cross.w_v.operand_address(self)?, mixed, o.operand_address(self)?)
            }
            Way::Plain { k, v, log_sum_exp } => {
                self.launch_product(batch, Side::Encoder, h, cross.w_k, k)?;
                self.launch_product(batch, Side::Encoder, h, cross.w_v, v)?;
                let addresses = AttentionArguments {
                    q: q.operand_address(self)?,
                    k: k.operand_address(self)?,
                    v: v.operand_address(self)?,
                    o: o.operand_address(self)?,
                    log_sum_exp: log_sum_exp.float_address(self)?,
                    ..AttentionArguments::default()
                };
                self.attend(batch, &shape(cross), cross.mask, addresses)
            }
        }
    }

    /// Whether q and d_o are made with what cross attention makes of them first.
    fn projects(&self, batch: &Batch, cross: &CrossAttention<'_, Self>) -> bool {
        let heads = cross.heads;
        self.precision() == Precision::Bf16
            && heads.width <= WIDEST_PROJECTED
            && absorbs(batch, heads, cross.w_k.input)
    }

    /// Makes rows of H·K columns, and what `weight_behind` widens them to, in one launch.
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    fn launch_projected(
        &self,
        name: &'static str,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        a: u64,
        weight: &Weight,
        norm: Option<&Rows>,
        weight_behind: &Weight,
        middle: &mut Rows,
    ) -> Result<()> {
        let room = Room::of(batch, cross.heads, cross.w_k.input);
        check_width(cross.heads.width, "leave --device out to compute on the CPU")?;
        middle.check("q or d_o", room.targets, cross.heads.total())?;
        let wide = self.activation(room.targets, room.heads.count * room.depth, Format::Operand);
        let of = CrossArguments {
            batch: self.describe(batch)?.address(self)?,
            weight: weight_behind.operand_address(self)?,
            to: wide.operand_address(self)?,
            ..numbers_of(&room)
        };
        let arguments = ProjectedArguments {
            of,
            a,
            weight: weight.operand_address(self)?,
            partials: norm.map_or(Ok(0), |norm| norm.float_address(self))?,
            middle: middle.operand_address(self)?,
            epsilon: norm.map_or(0.0, |norm| norm.epsilon),
            padding: 0,
        };
        self.count_absorbed(&room, 2, 0);
        let grid = [room.columns(), room.targets.div_ceil(64), room.heads.count];
        let kernel = Kernel { file: "cross_attention", name };
        let grid = grid.map(|blocks| blocks as u32);
        // SAFETY: every operand was checked against the room; rows beyond the batch's exit.
        unsafe { self.kernels().launch(kernel, grid, 128, SHARED_PROJECTED, &arguments)? };
        middle.widened = Some(Arc::new(wide));
        Ok(())
    }

    pub(super) fn launch_cross_project(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        x: &Rows,
        r: &Rows,
        weight: &Weight,
        q: &mut Rows,
    ) -> Result<()> {
        if !self.projects(batch, cross) {
            return self.launch_project(batch, Side::Decoder, x, r, weight, q);
        }
        let (rows, depth) = (batch.rows(Side::Decoder), cross.w_k.input);
        x.check("x", rows, depth)?;
        r.check("r", rows, depth)?;
        check_weight("w_q", weight, [cross.heads.total(), depth])?;
        let a = x.operand_address(self)?;
        self.launch_projected("cross_project_bf16", batch, cross, a, weight, Some(r), cross.w_k, q)
    }

    pub(super) fn launch_cross_project_backward(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        d_x: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        d_o: &mut Rows,
    ) -> Result<()> {
        if !self.projects(batch, cross) {
            return self.launch_add_project_backward(batch, Side::Decoder, d_x, weight, mask, None, d_o);
        }
        let (rows, depth) = (batch.rows(Side::Decoder), cross.w_k.input);
        d_x.check("d_x", rows, depth)?;
        check_weight("w_o", weight, [depth, cross.heads.total()])?;
        let mut masked = None;
        let a = self.masked_gradient(batch, Side::Decoder, d_x, mask, &mut masked)?;
        self.launch_projected("cross_project_backward_bf16", batch, cross, a, weight, None, cross.w_v, d_o)
    }

    /// d_h of all layers.
    fn sum_parts(&self, batch: &Batch, parts: &[Part], d_h: &mut Rows, adds: bool) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        let room = first.room;
        d_h.check("d_h", room.sources, room.depth)?;
        let of = CrossArguments {
            batch: self.describe(batch)?.address(self)?,
            d_h: d_h.float_address(self)?,
            ..numbers_of(&room)
        };
        let mut layers = Vec::new();
        for part in parts {
            part.absorbed_q.check("q'", room.targets, part.room.heads.count * room.depth)?;
            layers.push([
                part.ds.address(self)?,
                part.p.address(self)?,
                part.absorbed_q.operand_address(self)?,
                part.d_mixed.operand_address(self)?,
            ]);
            self.count_absorbed(&room, 0, 2);
        }
        let launches = Launches { kernels: self.kernels(), precision: self.precision(), room, of };
        launches.sum_sources(&layers, adds)
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_cross_attention_backward(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        kept: &CrossKept,
        q: &Rows,
        h: &Rows,
        o: &Rows,
        d_o: &Rows,
        d_q: Option<&mut Rows>,
        d_h: &mut SourceGradient,
    ) -> Result<()> {
        let (sources, targets, total) =
            (batch.rows(Side::Encoder), batch.rows(Side::Decoder), cross.heads.total());
        q.check("q", targets, total)?;
        o.check("o", targets, total)?;
        d_o.check("d_o", targets, total)?;
        let room = Room::of(batch, cross.heads, cross.w_k.input);
        let parts = if kept.is_absorbed() { room.inner_parts(self.precision()) } else { cross.heads.count };
        let (mut d_q_address, mut inner_address) = (0, 0);
        if let Some(d_q) = d_q {
            d_q.check("d_q", targets, total)?;
            d_q_address = d_q.operand_address(self)?;
            let inner = self.allocate(targets * parts);
            inner_address = self.address_of(&inner)?;
            d_q.inner = Some(inner);
        }
        match &kept.0 {
            Way::Absorbed { absorbed_q, scores, sums } => {
                let mut launches = self.absorbed(batch, cross, h, (absorbed_q, scores, sums))?;
                let wide = room.heads.count * room.depth;
                let known = d_o.widened.clone();
                let d_mixed =
                    known.unwrap_or_else(|| Arc::new(self.activation(targets, wide, Format::Operand)));
                let wanted = if d_q_address == 0 { 0 } else { targets };
                let d_absorbed_q = self.activation(wanted, wide, Format::Operand);
                let [p, ds] = [self.operand(room.pairs()), self.operand(room.pairs())];
                let of = &mut launches.of;
                of.o = o.operand_address(self)?;
                of.d_o = d_o.operand_address(self)?;
                of.d_mixed = d_mixed.operand_address(self)?;
                of.p = p.address(self)?;
                of.ds = ds.address(self)?;
                if d_q_address != 0 {
                    of.d_absorbed_q = d_absorbed_q.operand_address(self)?;
                }
                let with_d_q = usize::from(d_q_address != 0);
                let widened = usize::from(d_o.widened.is_none());
                self.count_absorbed(&room, widened + with_d_q, 1 + with_d_q);
                if d_o.widened.is_none() {
                    let (d_o, w_v) = (launches.of.d_o, cross.w_v.operand_address(self)?);
                    launches.widen(d_o, w_v, launches.of.d_mixed)?;
                }
                let w_k = cross.w_k.operand_address(self)?;
                launches.backward(q.operand_address(self)?, w_k, d_q_address, inner_address)?;
                d_h.parts.push(Part { room, absorbed_q: absorbed_q.clone(), d_mixed, ds, p });
                Ok(())
            }
            Way::Plain { k, v, log_sum_exp } => {
                let d_k = self.activation(sources, total, Format::Operand);
                let d_v = self.activation(sources, total, Format::Operand);
                let addresses = AttentionArguments {
                    q: q.operand_address(self)?,
                    k: k.operand_address(self)?,
                    v: v.operand_address(self)?,
                    o: o.operand_address(self)?,
                    log_sum_exp: log_sum_exp.float_address(self)?,
                    d_o: d_o.operand_address(self)?,
                    d_q: d_q_address,
                    d_k: d_k.operand_address(self)?,
                    d_v: d_v.operand_address(self)?,
                    inner: inner_address,
                    inner_parts: 1,
                    ..AttentionArguments::default()
                };
                self.attend_backward(batch, &shape(cross), cross.mask, addresses)?;
                let sum = d_h.sum_mut(self, batch);
                self.launch_accumulate(batch, Side::Encoder, &d_k, cross.w_k, sum)?;
                self.launch_accumulate(batch, Side::Encoder, &d_v, cross.w_v, sum)
            }
        }
    }
}

/// Cross attention absorbed into the rows that it is over, for launches on cudarc's own buffers, in bf16.
///
/// o = W_v mixed with mixed = softmax(q W_k · h) h for each target row and head, without 1 / sqrt(K): no key and no value of a
/// source row is computed. Targets \[T, H·K\] and sources h \[R, D\] are packed end to end. It pays where a target has fewer
/// rows than a head has columns.
#[derive(Clone, Copy)]
pub struct AbsorbedCrossAttention<'a> {
    /// How targets and sources are cut into examples.
    pub sequences: &'a PairedSequences,
    /// Head count and width; the width a multiple of 8, up to 128.
    pub heads: Heads,
    /// \[H·K, D\].
    pub w_k: &'a CudaView<'a, bf16>,
    /// \[H·K, D\].
    pub w_v: &'a CudaView<'a, bf16>,
}

/// What the forward pass leaves for the backward pass; lengths by [`AbsorbedCrossAttention::lengths`].
pub struct AbsorbedKept<'a, 'b> {
    /// q W_k of each head, \[T, H, D\].
    pub absorbed_q: &'a mut CudaViewMut<'b, bf16>,
    /// Scores of every pair of a row (a target and head, in this order) and a source row of its example. Example b's lie from
    /// (o + 8·b)·longest·H on, with o its first source row rounded up to eight; row by row, n rounded up to eight apart.
    pub scores: &'a mut CudaViewMut<'b, f32>,
    /// Maximum and sum of exponentials of each row and tile.
    pub sums: &'a mut CudaViewMut<'b, f32>,
}

/// Numbers in the buffers of [`AbsorbedCrossAttention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsorbedLengths {
    /// Of q', mixed, d_mixed and d_q', each: T·H·D.
    pub wide: usize,
    /// Of scores, p and ds, each.
    pub pairs: usize,
    /// Of the sums.
    pub sums: usize,
}

impl AbsorbedCrossAttention<'_> {
    fn room(&self) -> Result<Room> {
        let total = self.heads.total();
        check_width(self.heads.width, "")?;
        let depth = self.w_k.len() / total;
        if !depth.is_multiple_of(WIDTH_MULTIPLE) || depth == 0 {
            return Err(Error::tensor("w_k", "[H·K, D] with D a multiple of 8", format!("D {depth}"), ""));
        }
        check_length("w_k", total * depth, self.w_k.len())?;
        check_length("w_v", total * depth, self.w_v.len())?;
        let (examples, sources, targets, longest) = self.sequences.counts();
        let tiles = sources / ATTENTION_TILE + examples;
        Ok(Room { examples, sources, targets, longest, tiles, heads: self.heads, depth })
    }

    /// How long the buffers must be that the caller brings.
    ///
    /// # Errors
    /// Weights or heads that do not fit.
    pub fn lengths(&self) -> Result<AbsorbedLengths> {
        let room = self.room()?;
        let wide = room.targets * room.heads.count * room.depth;
        Ok(AbsorbedLengths { wide, pairs: room.pairs(), sums: 2 * room.sums() })
    }

    fn launches<'k>(
        &self,
        kernels: &'k Kernels,
        h: &CudaView<'_, bf16>,
        kept: &mut AbsorbedKept<'_, '_>,
    ) -> Result<Launches<'k>> {
        let (room, lengths, stream) = (self.room()?, self.lengths()?, kernels.stream());
        check_length("h", room.sources * room.depth, h.len())?;
        check_length("absorbed_q", lengths.wide, kept.absorbed_q.len())?;
        check_length("scores", lengths.pairs, kept.scores.len())?;
        check_length("sums", lengths.sums, kept.sums.len())?;
        let of = CrossArguments {
            batch: self.sequences.address(kernels),
            h: address(h, stream),
            absorbed_q: address_mut(kept.absorbed_q, stream),
            scores: address_mut(kept.scores, stream),
            sums: address_mut(kept.sums, stream),
            ..numbers_of(&room)
        };
        Ok(Launches { kernels, precision: Precision::Bf16, room, of })
    }

    /// Launches the forward pass: `o` \[T, H·K\] from `q` \[T, H·K\] and `h` \[R, D\]. `mixed` \[T, H, D\] is scratch.
    ///
    /// Costs 4·t·H·D·(n + K) operations for an example of t targets and n sources, in four launches; reads the weights once for
    /// every 64 targets, and h twice for every 64 / H targets of its example.
    ///
    /// # Errors
    /// A length or head width that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        q: &CudaView<'_, bf16>,
        h: &CudaView<'_, bf16>,
        kept: &mut AbsorbedKept<'_, '_>,
        mixed: &mut CudaViewMut<'_, bf16>,
        o: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        let (launches, stream) = (self.launches(kernels, h, kept)?, kernels.stream());
        let narrow = launches.room.targets * self.heads.total();
        check_length("q", narrow, q.len())?;
        check_length("o", narrow, o.len())?;
        check_length("mixed", self.lengths()?.wide, mixed.len())?;
        let [q, w_k, w_v] = [q, self.w_k, self.w_v].map(|view| address(view, stream));
        let (mixed, o) = (address_mut(mixed, stream), address_mut(o, stream));
        check_aligned(&[("q", q), ("w_k", w_k), ("w_v", w_v), ("mixed", mixed), ("o", o)])?;
        check_aligned(&launches.shared_operands())?;
        launches.widen(q, w_k, launches.of.absorbed_q)?;
        launches.forward(w_v, mixed, o)
    }

    /// Launches the backward pass: `d_q` \[T, H·K\], and adds to `d_h` \[R, D\] in f32, from `d_o` and what forward left.
    /// `wide` is scratch for two \[T, H, D\] and `pairs` for two of [`AbsorbedLengths::pairs`].
    ///
    /// Costs twice the forward pass, in five launches; deterministic, no atomics.
    ///
    /// # Errors
    /// As [`AbsorbedCrossAttention::forward`].
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub fn backward(
        &self,
        kernels: &Kernels,
        q: &CudaView<'_, bf16>,
        h: &CudaView<'_, bf16>,
        kept: &mut AbsorbedKept<'_, '_>,
        o: &CudaView<'_, bf16>,
        d_o: &CudaView<'_, bf16>,
        wide: &mut CudaViewMut<'_, bf16>,
        pairs: &mut CudaViewMut<'_, bf16>,
        d_q: &mut CudaViewMut<'_, bf16>,
        d_h: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (mut launches, stream) = (self.launches(kernels, h, kept)?, kernels.stream());
        let (room, lengths) = (launches.room, self.lengths()?);
        let narrow = room.targets * self.heads.total();
        for (what, length) in [("q", q.len()), ("o", o.len()), ("d_o", d_o.len()), ("d_q", d_q.len())] {
            check_length(what, narrow, length)?;
        }
        check_length("wide", 2 * lengths.wide, wide.len())?;
        check_length("pairs", 2 * lengths.pairs, pairs.len())?;
        check_length("d_h", room.sources * room.depth, d_h.len())?;
        let (d_mixed, p) = (address_mut(wide, stream), address_mut(pairs, stream));
        launches.of = CrossArguments {
            o: address(o, stream),
            d_o: address(d_o, stream),
            d_mixed,
            d_absorbed_q: d_mixed + 2 * lengths.wide as u64,
            p,
            ds: p + 2 * lengths.pairs as u64,
            d_h: address_mut(d_h, stream),
            ..launches.of
        };
        let [q, w_k, w_v] = [q, self.w_k, self.w_v].map(|view| address(view, stream));
        let d_q = address_mut(d_q, stream);
        check_aligned(&[("q", q), ("w_k", w_k), ("w_v", w_v), ("d_q", d_q)])?;
        check_aligned(&launches.shared_operands())?;
        launches.widen(launches.of.d_o, w_v, d_mixed)?;
        launches.backward(q, w_k, d_q, 0)?;
        launches.sum_sources(&[[launches.of.ds, launches.of.p, launches.of.absorbed_q, d_mixed]], true)
    }
}
