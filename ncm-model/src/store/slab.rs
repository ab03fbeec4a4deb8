//! Numbered slots in pages: growing never moves what is there, so that it neither pauses nor doubles the memory.

const PAGE_BITS: u32 = 12;
const PAGE: usize = 1 << PAGE_BITS;

/// Slots of `T`, by number. A removed slot keeps the default value until it is used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    pages: Vec<Vec<T>>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<T: Default> Slab<T> {
    /// Puts a value into a free slot.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.used += 1;
        if let Some(slot) = self.free.pop() {
            self[slot] = value;
            return slot;
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let page = self.pages.len() - 1;
        let last = &mut self.pages[page];
        last.push(value);
        ((page << PAGE_BITS) + last.len() - 1) as u32
    }

    /// Frees a slot and gives back its value. When it was the last in use, all memory is given back.
    pub(crate) fn remove(&mut self, slot: u32) -> T {
        let value = std::mem::take(&mut self[slot]);
        self.used -= 1;
        if self.used == 0 {
            self.pages = Vec::new();
            self.free = Vec::new();
        } else {
            self.free.push(slot);
        }
        value
    }

    /// How many slots are in use.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// One more than the highest slot ever used (since the slab was last empty).
    pub(crate) fn bound(&self) -> u32 {
        self.pages.last().map_or(0, |page| (((self.pages.len() - 1) << PAGE_BITS) + page.len()) as u32)
    }

    /// The value in a slot, if the slot exists.
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.pages.get((slot >> PAGE_BITS) as usize)?.get(slot as usize & (PAGE - 1))
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        &self.pages[(slot >> PAGE_BITS) as usize][slot as usize & (PAGE - 1)]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        &mut self.pages[(slot >> PAGE_BITS) as usize][slot as usize & (PAGE - 1)]
    }
}
