// Draws an image and its coloured regions on two canvases, and answers which word is at a place.

export const NO_WORD = 65535;

export class Painter {
  constructor(view) {
    this.view = view;
    [this.image, this.overlay, this.tags] = view.children;
    this.opacity = 0.5;
    this.names = true;
    this.words = new Map(); // by label: word, color, place
    this.labels = null;
    this.turn = 0; // of label maps that were asked for
    this.chosen = null; // Uint8Array: pixels of the chosen region
  }

  async showImage(url) {
    const shown = await loadImage(url);
    for (const canvas of [this.image, this.overlay]) {
      canvas.width = shown.naturalWidth;
      canvas.height = shown.naturalHeight;
    }
    this.image.getContext("2d").drawImage(shown, 0, 0);
    this.fit();
  }

  // Show a label map; return whether no newer one was asked for meanwhile.
  async showLabels(url, words) {
    const turn = ++this.turn;
    const map = await loadImage(url);
    if (turn !== this.turn) return false;
    const [width, height] = [map.naturalWidth, map.naturalHeight];
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(map, 0, 0);
    const data = context.getImageData(0, 0, width, height).data;
    const labels = new Uint16Array(width * height);
    for (let i = 0; i < labels.length; i++) labels[i] = data[4 * i] | (data[4 * i + 1] << 8);
    this.labels = labels;
    this.words = new Map(words.map((one) => [one.label, { ...one, rgb: rgbOf(one.color) }]));
    this.chosen = null;
    this.draw();
    return true;
  }

  draw() {
    if (!this.labels) return;
    const { width, height } = this.overlay;
    const context = this.overlay.getContext("2d");
    const pixels = context.createImageData(width, height);
    const { data } = pixels;
    const fill = Math.round(255 * this.opacity);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const label = this.labels[i];
        const word = this.words.get(label);
        const chosen = this.chosen !== null && this.chosen[i] === 1;
        if (chosen && this.isBorder(i, x, y, width, height)) {
          data[4 * i] = data[4 * i + 1] = data[4 * i + 2] = data[4 * i + 3] = 255;
        } else if (word) {
          const right = x + 1 < width && this.labels[i + 1] !== label;
          const below = y + 1 < height && this.labels[i + width] !== label;
          data[4 * i] = word.rgb[0];
          data[4 * i + 1] = word.rgb[1];
          data[4 * i + 2] = word.rgb[2];
          data[4 * i + 3] = fill && (right || below) ? 255 : chosen ? Math.min(255, fill + 50) : fill;
        }
      }
    }
    context.putImageData(pixels, 0, 0);
    this.writeNames();
  }

  isBorder(i, x, y, width, height) {
    const off = (dx, dy) => {
      const [u, v] = [x + dx, y + dy];
      return u < 0 || v < 0 || u >= width || v >= height || !this.chosen[i + dx + dy * width];
    };
    const reach = Math.max(1, Math.round(width / 500));
    for (let step = 1; step <= reach; step++) {
      if (off(step, 0) || off(-step, 0) || off(0, step) || off(0, -step)) return true;
    }
    return false;
  }

  // Write the names on the regions, largest first; one that would overlap an earlier one is left out.
  writeNames() {
    this.tags.replaceChildren();
    if (!this.names || this.opacity === 0) return;
    const frame = this.tags.getBoundingClientRect();
    const taken = [];
    for (const word of this.words.values()) {
      if (!word.place) continue;
      const tag = document.createElement("span");
      const [red, green, blue] = word.rgb;
      tag.textContent = word.word;
      tag.style.background = word.color;
      tag.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 130 ? "#000" : "#fff";
      this.tags.append(tag);
      const [wide, high] = [tag.offsetWidth / 2, tag.offsetHeight / 2];
      const x = Math.min(Math.max(word.place[0] * frame.width, wide), frame.width - wide);
      const y = Math.min(Math.max(word.place[1] * frame.height, high), frame.height - high);
      const free = taken.every(([u, v, w, h]) => Math.abs(x - u) >= wide + w || Math.abs(y - v) >= high + h);
      if (!free || 2 * wide > frame.width) {
        tag.remove();
        continue;
      }
      taken.push([x, y, wide, high]);
      tag.style.left = `${(100 * x) / frame.width}%`;
      tag.style.top = `${(100 * y) / frame.height}%`;
    }
  }

  // Show the image as large as its frame and the window permit, a small one at four times its size at most.
  fit() {
    const { width, height } = this.image;
    const frame = this.view.parentElement;
    const room = frame.clientWidth - 2 * parseFloat(getComputedStyle(frame).paddingLeft);
    const scale = Math.min(room / width, (0.68 * innerHeight) / height, 4);
    this.view.style.width = `${Math.max(1, Math.floor(width * scale))}px`;
    this.writeNames();
  }

  labelAt(x, y) {
    const { width, height } = this.overlay;
    const [column, row] = [Math.min(width - 1, Math.floor(x * width)), Math.min(height - 1, Math.floor(y * height))];
    return this.labels ? this.labels[row * width + column] : NO_WORD;
  }

  wordAt(x, y) {
    return this.words.get(this.labelAt(x, y));
  }

  // Highlight the connected part of a word around a place.
  choose(x, y) {
    const { width, height } = this.overlay;
    const start = Math.min(height - 1, Math.floor(y * height)) * width + Math.min(width - 1, Math.floor(x * width));
    const label = this.labels[start];
    this.chosen = new Uint8Array(width * height);
    const stack = [start];
    this.chosen[start] = 1;
    while (stack.length) {
      const i = stack.pop();
      const column = i % width;
      for (const [next, inside] of [
        [i - 1, column > 0],
        [i + 1, column + 1 < width],
        [i - width, i >= width],
        [i + width, i + width < this.labels.length],
      ]) {
        if (inside && !this.chosen[next] && this.labels[next] === label) {
          this.chosen[next] = 1;
          stack.push(next);
        }
      }
    }
    this.draw();
  }
}

function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the image cannot be shown: segment it again"));
    image.src = url;
  });
}

function rgbOf(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}
