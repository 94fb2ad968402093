//! Makes inputs from seeds, to fuzz with the stable compiler. The changes are random and not guided by coverage, so the
//! inputs stay similar to the seeds. Pure: the same start value gives the same inputs.

/// Makes fuzzing inputs by changing seeds at random.
#[derive(Clone, Debug)]
pub struct Mutator {
    state: u64,
}

/// The maximum length of a generated input, in bytes.
const MAX_LEN: usize = 32 * 1024;

impl Mutator {
    /// Creates a mutator whose inputs are determined by `start`.
    pub fn new(start: u64) -> Self {
        // The state must not be zero: from zero the generator (Marsaglia's xorshift) returns only zeros.
        Self { state: start | 1 }
    }

    /// Returns a copy of a randomly chosen seed with one to six random changes.
    pub fn change(&mut self, seeds: &[&[u8]]) -> Vec<u8> {
        let mut input = self.pick(seeds).to_vec();
        for _ in 0..=self.below(6) {
            self.change_once(&mut input, seeds);
        }
        input.truncate(MAX_LEN);
        input
    }

    fn change_once(&mut self, input: &mut Vec<u8>, seeds: &[&[u8]]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below(input.len() - at + 1).min(64);
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => input.insert(at, self.byte()),
            3 => drop(input.drain(at..end)),
            4 => {
                let copied = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, copied));
            }
            5 => input.truncate(at),
            6 => {
                let other = self.pick(seeds);
                let from = self.below(other.len() + 1);
                drop(input.splice(at.., other[from..].iter().copied()));
            }
            _ => {
                let number =
                    self.pick(&[&[0][..], &[0xff; 2], &[0xff; 4], &[0x80, 0, 0, 0], &[0xff; 8], b"\"", b"\n", b"9"]);
                drop(input.splice(at..end, number.iter().copied()));
            }
        }
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn pick<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        let at = self.below(of.len().max(1));
        of.get(at).copied().unwrap_or_default()
    }

    /// Returns a random number below `bound`, which must not be 0.
    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % bound
    }
}
