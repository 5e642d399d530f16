// Both photos on one canvas with a line per match; the number and the confidence act without the server.
"use strict";
window.mast3r.MatchView = (() => {
  const GAP = 8;
  const NARROW = 560; // below this width the photos stand one above the other

  // Hue from x, saturation from y: the colours of multiview.plots.position_colors.
  const colorAt = (x, y) => `hsl(${0.85 * 360 * x} 100% ${100 - 25 * (1 + y)}%)`;

  function loadImage(url) {
    return new Promise((resolve) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => resolve(null);
      image.src = url;
    });
  }

  return class MatchView {
    constructor(element, options) {
      this.options = { count: 200, drop: 0, fitting: false, ...options };
      this.root = Object.assign(document.createElement("div"), { className: "matches" });
      this.canvas = document.createElement("canvas");
      this.canvas.setAttribute("role", "img");
      this.note = Object.assign(document.createElement("p"), { className: "matches-note", textContent: options.empty });
      this.note.setAttribute("aria-live", "polite");
      this.root.append(this.canvas, this.note);
      element.replaceChildren(this.root);
      this.canvas.hidden = true;
      new ResizeObserver(() => this.draw()).observe(this.root);
      this.canvas.addEventListener("pointermove", (event) => this.onHover(event));
      this.canvas.addEventListener("pointerdown", (event) => this.onHover(event));
      this.canvas.addEventListener("pointerleave", () => this.light(null));
    }

    // value: {photos: [{url, width, height}], rows: [[x0, y0, x1, y1, rank, fits]]}, rows in drawing order.
    async show(value) {
      this.wanted = value;
      if (!value?.photos) return;
      const images = await Promise.all(value.photos.map((photo) => loadImage(photo.url)));
      if (this.wanted !== value) return;
      this.scene = { ...value, images };
      this.lit = null;
      this.canvas.hidden = false;
      this.choose();
    }

    set(options) {
      Object.assign(this.options, options);
      if (this.scene) this.choose();
    }

    choose() {
      const { count, drop, fitting } = this.options;
      const kept = this.scene.rows.filter((row) => row[4] >= drop && (!fitting || row[5]));
      this.chosen = kept.slice(0, count);
      this.note.textContent = `${this.chosen.length} of ${this.scene.rows.length} matches drawn`;
      this.canvas.setAttribute("aria-label", `Both photos, ${this.note.textContent}.`);
      this.light(null);
      this.draw();
    }

    // Where the photos stand: their corners and scales in CSS pixels.
    layout(width) {
      const [a, b] = this.scene.photos;
      if (width < NARROW) {
        const scales = [width / a.width, width / b.width];
        const top = a.height * scales[0] + GAP;
        return { scales, corners: [[0, 0], [0, top]], height: top + b.height * scales[1] };
      }
      const height = Math.min(560, (width - GAP) / (a.width / a.height + b.width / b.height));
      const scales = [height / a.height, height / b.height];
      const used = a.width * scales[0] + GAP + b.width * scales[1];
      const left = (width - used) / 2;
      return { scales, corners: [[left, 0], [left + a.width * scales[0] + GAP, 0]], height };
    }

    draw() {
      if (!this.scene || this.asked) return;
      this.asked = requestAnimationFrame(() => {
        this.asked = 0;
        this.paint();
      });
    }

    paint() {
      const width = this.root.clientWidth;
      if (!width) return;
      this.places = this.layout(width);
      const ratio = window.devicePixelRatio || 1;
      const { canvas } = this;
      canvas.style.height = `${this.places.height}px`;
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(this.places.height * ratio)];
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      this.scene.images.forEach((image, i) => this.paintPhoto(pen, image, i));
      this.chosen.forEach((row) => row !== this.lit && this.paintMatch(pen, row, this.lit ? 0.15 : 0.85, 1));
      if (this.lit) this.paintMatch(pen, this.lit, 1, 3);
      this.root.dataset.drawn = this.chosen.length; // what is on the screen now, for tests
    }

    paintPhoto(pen, image, i) {
      const { width, height } = this.scene.photos[i];
      const scale = this.places.scales[i];
      if (image) pen.drawImage(image, ...this.places.corners[i], width * scale, height * scale);
    }

    // Ends of a match in CSS pixels; integer coordinates are pixel centres.
    ends(row) {
      const { scales, corners } = this.places;
      return [0, 1].map((i) => [0, 1].map((axis) => corners[i][axis] + (row[2 * i + axis] + 0.5) * scales[i]));
    }

    paintMatch(pen, row, opacity, thickness) {
      const { width, height } = this.scene.photos[0];
      const [a, b] = this.ends(row);
      pen.globalAlpha = opacity;
      pen.strokeStyle = pen.fillStyle = colorAt(row[0] / width, row[1] / height);
      pen.lineWidth = thickness;
      pen.beginPath();
      pen.moveTo(...a);
      pen.lineTo(...b);
      pen.stroke();
      [a, b].forEach(([x, y]) => {
        pen.beginPath();
        pen.arc(x, y, 1.5 + thickness / 2, 0, 2 * Math.PI);
        pen.fill();
      });
      pen.globalAlpha = 1;
    }

    onHover(event) {
      if (!this.places) return;
      const box = this.canvas.getBoundingClientRect();
      const at = [event.clientX - box.left, event.clientY - box.top];
      let best = { off: 14, row: null };
      this.chosen.forEach((row) =>
        this.ends(row).forEach(([x, y]) => {
          const off = Math.hypot(x - at[0], y - at[1]);
          if (off < best.off) best = { off, row };
        }),
      );
      this.light(best.row);
    }

    light(row) {
      if (row === this.lit) return;
      this.lit = row;
      this.draw();
    }
  };
})();
