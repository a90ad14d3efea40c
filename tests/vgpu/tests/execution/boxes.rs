//! Boxes of tensors of one to five dimensions, both ways: what the manual says of coordinates, strides, steps, what lies outside,
//! and the order of pieces in shared memory. Each is compared with the definition, element by element.

use crate::bench::{Bench, device};
use vgpu::device::{Arguments, describe};
use vgpu::execute::Outcome;
use vgpu::profile::Profile;
use vgpu::tensor_map::{Request, TensorMap};

/// A tensor, a box of it and where the box begins. All are innermost dimension first.
#[derive(Debug)]
struct Case {
    /// `CUtensorMapDataType` by number, and bytes of an element.
    kind: (u32, usize),
    dimensions: &'static [u64],
    /// Bytes between neighbours of each dimension but the first.
    strides: &'static [u64],
    boxes: &'static [u32],
    steps: &'static [u32],
    start: &'static [i32],
    /// `CUtensorMapSwizzle` and `CUtensorMapFloatOOBfill` by number.
    swizzle: u32,
    fill: u32,
}

const BYTES: (u32, usize) = (0, 1);
const WORDS: (u32, usize) = (2, 4);
const LONGS: (u32, usize) = (4, 8);
const SINGLES: (u32, usize) = (7, 4);
const BRAINS: (u32, usize) = (9, 2);

#[rustfmt::skip]
const CASES: [Case; 13] = [
    // Inside; before the beginning; beyond the end.
    Case { kind: BYTES, dimensions: &[100], strides: &[], boxes: &[32], steps: &[1], start: &[17], swizzle: 0, fill: 0 },
    Case { kind: WORDS, dimensions: &[100], strides: &[], boxes: &[16], steps: &[1], start: &[-5], swizzle: 0, fill: 0 },
    Case { kind: SINGLES, dimensions: &[100], strides: &[], boxes: &[32], steps: &[1], start: &[90], swizzle: 0, fill: 1 },
    // Rows farther apart than they are long, at both edges of both dimensions.
    Case { kind: BRAINS, dimensions: &[13, 9], strides: &[48], boxes: &[16, 4], steps: &[1, 1], start: &[-3, 7], swizzle: 0, fill: 1 },
    Case { kind: BRAINS, dimensions: &[70, 9], strides: &[160], boxes: &[64, 16], steps: &[1, 1], start: &[8, -4], swizzle: 3, fill: 0 },
    // Every second row: a span of 7 holds 4.
    Case { kind: WORDS, dimensions: &[8, 12], strides: &[32], boxes: &[8, 7], steps: &[1, 2], start: &[0, 3], swizzle: 0, fill: 0 },
    // The step of the innermost dimension does not count.
    Case { kind: WORDS, dimensions: &[8, 12], strides: &[32], boxes: &[8, 4], steps: &[2, 1], start: &[2, 10], swizzle: 0, fill: 0 },
    Case { kind: LONGS, dimensions: &[6, 5, 4], strides: &[48, 256], boxes: &[4, 3, 3], steps: &[1, 1, 1], start: &[3, 3, 2], swizzle: 0, fill: 0 },
    Case { kind: BRAINS, dimensions: &[32, 7, 5], strides: &[64, 448], boxes: &[32, 6, 4], steps: &[1, 1, 1], start: &[0, 2, -2], swizzle: 2, fill: 0 },
    Case { kind: BYTES, dimensions: &[40, 7, 5, 3], strides: &[48, 352, 1776], boxes: &[32, 3, 4, 2], steps: &[1, 1, 2, 1], start: &[9, -1, 2, 1], swizzle: 1, fill: 0 },
    Case { kind: SINGLES, dimensions: &[8, 3, 4, 5], strides: &[32, 96, 384], boxes: &[4, 2, 3, 2], steps: &[1, 1, 1, 1], start: &[6, 2, 2, 4], swizzle: 0, fill: 1 },
    Case { kind: WORDS, dimensions: &[4, 3, 3, 3, 3], strides: &[16, 48, 144, 432], boxes: &[4, 2, 2, 2, 2], steps: &[1, 1, 1, 1, 1], start: &[0, 1, 0, 2, 1], swizzle: 0, fill: 0 },
    // Strides in no order, steps in three dimensions.
    Case { kind: BRAINS, dimensions: &[64, 4, 5, 3, 4], strides: &[1536, 128, 640, 7680], boxes: &[64, 3, 5, 3, 3], steps: &[1, 2, 3, 1, 2], start: &[0, 1, -1, 1, -2], swizzle: 3, fill: 0 },
];

impl Case {
    fn rank(&self) -> usize {
        self.dimensions.len()
    }

    /// Bytes that the tensor spans.
    fn span(&self) -> usize {
        let far = (1..self.rank()).map(|axis| (self.dimensions[axis] - 1) * self.strides[axis - 1]);
        far.sum::<u64>() as usize + self.dimensions[0] as usize * self.kind.1
    }

    fn map(&self, address: u64) -> [u8; 128] {
        let request = Request {
            kind: self.kind.0,
            address,
            dimensions: self.dimensions,
            strides: self.strides,
            boxes: self.boxes,
            steps: self.steps,
            interleave: 0,
            swizzle: self.swizzle,
            fill: self.fill,
        };
        TensorMap::new(&request).unwrap().encode()
    }

    /// For each element of the box as shared memory holds it: its byte there, and its byte in the tensor if it is inside.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let step = |axis: usize| if axis == 0 { 1 } else { self.steps[axis] };
        let counts: Vec<usize> =
            (0..self.rank()).map(|axis| self.boxes[axis].div_ceil(step(axis)) as usize).collect();
        let size = self.kind.1;
        (0..counts.iter().product())
            .map(|index: usize| {
                let (mut left, mut source) = (index, Some(0));
                for (axis, count) in counts.iter().enumerate() {
                    let at = i64::from(self.start[axis]) + (left % count) as i64 * i64::from(step(axis));
                    left /= count;
                    let inside = (0..self.dimensions[axis] as i64).contains(&at);
                    let stride = if axis == 0 { size } else { self.strides[axis - 1] as usize };
                    source = source.filter(|_| inside).map(|source| source + at as usize * stride);
                }
                let (row, piece) = (index * size / 128, index * size % 128 / 16);
                // The figures of the manual: 16-byte pieces change places within 128 bytes, by the number of the row of 128.
                let piece = match self.swizzle {
                    0 => piece,
                    1 => piece ^ (row & 1),
                    2 => piece ^ (row & 3),
                    _ => piece ^ (row & 7),
                };
                (row * 128 + piece * 16 + index * size % 16, source)
            })
            .collect()
    }

    fn bytes(&self) -> usize {
        self.elements().len() * self.kind.1
    }

    /// A kernel that brings the box and stores shared memory as it is, or the other way round.
    fn text(&self, inwards: bool) -> String {
        let (rank, bytes) = (self.rank(), self.bytes());
        let names: Vec<String> = (0..rank).map(|axis| format!("%c{axis}")).collect();
        let names = names.join(", ");
        let mut parameters = String::new();
        let mut body = String::new();
        for axis in 0..rank {
            parameters += &format!(", .param .u32 c{axis}");
            body += &format!("ld.param.u32 %c{axis}, [c{axis}];\n");
        }
        let each = |label: &str, one: &str| {
            format!(
                "mul.lo.u32 %r4, %r1, 4;\nmul.wide.u32 %d3, %r1, 4;\nadd.s64 %d3, %d2, %d3;\n{label}:\nadd.u32 %r5, %r2, %r4;\n\
                 setp.lt.u32 %q, %r4, {bytes};\n{one}add.u32 %r4, %r4, 128;\nadd.s64 %d3, %d3, 128;\n@%q bra {label};\n"
            )
        };
        if inwards {
            body += &format!(
                "@%p mbarrier.init.shared::cta.b64 [%r3], 1;\n@%p fence.mbarrier_init.release.cluster;\nbar.sync 0;\n\
                 @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};\n\
                 @%p cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%d1, {{{names}}}];\n\
                 @%p cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], \
                 [%d1, {{{names}}}], [%r3];\n\
                 AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 %q, [%r3], 0;\n@!%q bra AGAIN;\n"
            );
            body += &each("OUT", "@%q ld.shared.u32 %r6, [%r5];\n@%q st.global.u32 [%d3], %r6;\n");
        } else {
            body += &each("IN", "@%q ld.global.u32 %r6, [%d3];\n@%q st.shared.u32 [%r5], %r6;\n");
            body += &format!(
                "fence.proxy.async.shared::cta;\nbar.sync 0;\n\
                 @%p cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%d1, {{{names}}}], [%r2];\n\
                 @%p cp.async.bulk.commit_group;\n@%p cp.async.bulk.wait_group 0;\n"
            );
        }
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry case(.param .align 64 .b8 map[128], \
             .param .u64 bytes{parameters})\n{{\n.reg .b32 %r<8>;\n.reg .b32 %c<5>;\n.reg .b64 %d<4>;\n.reg .pred %p;\n\
             .reg .pred %q;\n.shared .align 1024 .b8 tile[{bytes}];\n.shared .align 8 .b64 gate;\nmov.u32 %r1, %tid.x;\n\
             setp.eq.u32 %p, %r1, 0;\nmov.u32 %r2, tile;\nmov.u32 %r3, gate;\nmov.b64 %d1, map;\ncvta.param.u64 %d1, %d1;\n\
             ld.param.u64 %d2, [bytes];\n{body}ret;\n}}\n"
        )
    }

    fn run(&self, bench: &mut Bench, tensor: u64, bytes: u64) -> Outcome {
        let mut arguments = Arguments::new().and(&self.map(tensor)).pointer(bytes);
        for &start in self.start {
            arguments = arguments.int(start);
        }
        bench.launch("case", [1, 1, 1], [32, 1, 1], 0, &arguments)
    }

    fn bench(&self, inwards: bool) -> Bench {
        let mut device = device();
        device.profile = Profile::by_name("sm_90").unwrap();
        let module = device.load(&self.text(inwards)).unwrap();
        Bench { device, module }
    }

    /// What stands for an element outside: zero, or the NaN whose bits but the sign are all ones.
    fn outside(&self) -> &'static [u8] {
        match (self.fill, self.kind) {
            (0, _) => &[0; 8],
            (_, BRAINS) => &[0xff, 0x7f],
            _ => &[0xff, 0xff, 0xff, 0x7f],
        }
    }
}

/// Bytes of which no two neighbours, and none 16 or a power of two apart, are alike; none is zero.
fn pattern(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|at| ((at * 37 + at / 256 * 11 + seed) % 251 + 1) as u8).collect()
}

#[test]
fn boxes_of_every_rank_come_in_as_the_manual_has_them() {
    for case in &CASES {
        let mut bench = case.bench(true);
        let tensor = pattern(case.span(), 3);
        let (ptensor, out) = (bench.upload(&tensor), bench.empty(case.bytes()));
        let outcome = case.run(&mut bench, ptensor, out);
        assert!(outcome.reports.is_empty(), "{case:?}: {}", describe(&outcome.reports));
        let actual = bench.download::<u8>(out, case.bytes());
        let size = case.kind.1;
        let mut outside = 0;
        for (place, source) in case.elements() {
            outside += usize::from(source.is_none());
            let expected = source.map_or(&case.outside()[..size], |source| &tensor[source..source + size]);
            assert_eq!(
                &actual[place..place + size],
                expected,
                "{case:?}: shared byte {place}, tensor {source:?}"
            );
        }
        assert!(outside < case.elements().len(), "{case:?}: no element is inside");
    }
}

#[test]
fn boxes_of_every_rank_go_out_and_leave_what_is_outside_alone() {
    for case in &CASES {
        let mut bench = case.bench(false);
        let before = pattern(case.span(), 3);
        let shared = pattern(case.bytes(), 100);
        let (ptensor, psource) = (bench.upload(&before), bench.upload(&shared));
        let outcome = case.run(&mut bench, ptensor, psource);
        assert!(outcome.reports.is_empty(), "{case:?}: {}", describe(&outcome.reports));
        let mut expected = before;
        let size = case.kind.1;
        for (place, to) in case.elements() {
            if let Some(to) = to {
                expected[to..to + size].copy_from_slice(&shared[place..place + size]);
            }
        }
        let actual = bench.download::<u8>(ptensor, expected.len());
        let wrong = (0..expected.len()).find(|&at| actual[at] != expected[at]);
        assert_eq!(wrong, None, "{case:?}: first byte of the tensor that is wrong");
    }
}
