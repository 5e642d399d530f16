// The 3D viewer: one canvas, a few buttons, and the scene file the server wrote (see mast3r/demo/scene_file.py).
"use strict";
window.mast3r.Viewer = (() => {
  const FLIGHT = 0.9; // seconds
  const FRAME = 40; // milliseconds a picture may take while something moves
  const REST = 180; // milliseconds of rest until the whole picture is drawn
  const COARSEST = 15; // largest step between the points drawn meanwhile
  const POINTS_IN_SOFTWARE = 25000; // what a processor draws about so fast, before it was measured
  const KEYS = {
    ArrowLeft: (orbit) => orbit.turn(-0.08, 0),
    ArrowRight: (orbit) => orbit.turn(0.08, 0),
    ArrowUp: (orbit) => orbit.turn(0, -0.08),
    ArrowDown: (orbit) => orbit.turn(0, 0.08),
    "+": (orbit) => orbit.zoom(1 / 1.1),
    "-": (orbit) => orbit.zoom(1.1),
  };
  const HELP = "Drag to turn, right-drag or two fingers to move, wheel or pinch to zoom, double-click to centre.";

  const icon = (path) =>
    `<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="2"
      stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="${path}"/></svg>`;
  const ICONS = {
    back: icon("M15 5l-7 7 7 7"),
    next: icon("M9 5l7 7-7 7"),
    home: icon("M4 12a8 8 0 1 0 3-6.2M4 4v4h4"),
    full: icon("M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5"),
  };

  function make(tag, properties = {}, parent = null) {
    const node = Object.assign(document.createElement(tag), properties);
    if (parent) parent.append(node);
    return node;
  }

  function cameraOf(entry) {
    const m = entry.world_from_cam; // rows
    const column = (i) => [m[0][i], m[1][i], m[2][i]];
    const center = column(3);
    const place = (p) => [0, 1, 2].map((i) => m[i][0] * p[0] + m[i][1] * p[1] + m[i][2] * p[2] + m[i][3]);
    return { ...entry, center, place, right: column(0), down: column(1), forward: column(2) };
  }

  // Text header, then per map its points (float32) and its colours with the rank of the confidence (4 bytes).
  function parse(buffer) {
    const size = new DataView(buffer).getUint32(4, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
    let at = 8 + size;
    const maps = header.maps.map((map) => {
      const count = map.width * map.height;
      const points = new Float32Array(buffer, at, 3 * count);
      const colors = new Uint8Array(buffer, at + 12 * count, 4 * count);
      at += 16 * count;
      return { ...map, points, colors };
    });
    return { ...header, maps, cameras: header.cameras.map(cameraOf), cameraSize: header.camera_size };
  }

  return class Viewer {
    constructor(element, options) {
      this.options = { drop: 20, surface: false, cameras: true, pointSize: 1.2, ...options };
      this.root = make("div", { className: "viewer" });
      element.replaceChildren(this.root);
      this.canvas = make("canvas", { tabIndex: 0 }, this.root);
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", `3D scene. ${HELP} Arrow keys turn, plus and minus zoom.`);
      this.message = make("p", { className: "viewer-message", textContent: options.empty }, this.root);
      this.addButtons();
      this.pointers = new Map();
      this.listen();
    }

    addButtons() {
      this.bar = make("div", { className: "viewer-bar", hidden: true }, this.root);
      const button = (image, label, action) => {
        const node = make("button", { type: "button", innerHTML: image, title: label, onclick: action }, this.bar);
        node.setAttribute("aria-label", label);
      };
      button(ICONS.back, "Previous photo's view", () => this.goTo(this.current - 1));
      this.label = make("span", {}, this.bar);
      button(ICONS.next, "Next photo's view", () => this.goTo(this.current + 1));
      button(ICONS.home, "Back to the first view", () => this.home());
      button(ICONS.full, "Full screen", () => this.toggleFullscreen());
      this.hint = make("p", { className: "viewer-hint", hidden: true }, this.root);
      make("span", { textContent: HELP }, this.hint);
    }

    // --- scenes ---

    async show(value) {
      const wanted = (this.wanted = value?.url ?? null);
      if (value?.message) this.empty(value.message);
      if (!wanted) return;
      try {
        const answer = await fetch(wanted);
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        const buffer = await answer.arrayBuffer();
        if (this.wanted === wanted) this.load(parse(buffer));
      } catch (error) {
        console.warn("the 3D scene cannot be shown:", error);
        this.say("The 3D scene could not be loaded; run again.");
      }
    }

    load(scene) {
      try {
        this.painter ||= new window.mast3r.Painter(this.canvas);
      } catch (error) {
        console.warn(error);
        this.say("This browser cannot show 3D here (WebGL 2 is missing or switched off); the downloads still work.");
        return;
      }
      this.scene = scene;
      this.painter.load(scene);
      const total = scene.maps.reduce((sum, map) => sum + map.width * map.height, 0);
      this.measured = false;
      this.step = this.painter.software ? this.stepFor(total / POINTS_IN_SOFTWARE) : 1;
      this.say("");
      this.bar.hidden = false;
      this.hint.hidden = Boolean(this.touched);
      const first = scene.cameras[0];
      this.orbit = new window.mast3r.Orbit({ forward: first.forward, down: scene.down });
      this.current = 0;
      this.orbit.state = this.viewOf(0, 0);
      this.home();
    }

    empty(text) {
      this.scene = null;
      this.bar.hidden = this.hint.hidden = true;
      this.say(text);
    }

    say(text) {
      this.message.textContent = text;
      this.message.hidden = !text;
    }

    // --- views ---

    // What camera i sees, from a share of the scene's depth behind it.
    viewOf(i, back) {
      const camera = this.scene.cameras[i];
      const { width, height } = this.canvas.getBoundingClientRect();
      const wide = camera.aspect > (width || 1) / (height || 1);
      const focal = camera.focal * (wide ? width / height / camera.aspect : 1);
      return this.orbit.stateOf({ ...camera, focal: 0.94 * (focal || 1) }, camera.depth, back * camera.depth);
    }

    fly(state) {
      const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.orbit.flyTo(state, calm ? 0 : FLIGHT);
      this.draw();
    }

    home() {
      this.current = 0;
      this.tell();
      this.fly(this.viewOf(0, 0.3));
    }

    goTo(i) {
      if (!this.scene) return;
      const count = this.scene.cameras.length;
      this.current = (i + count) % count;
      this.tell();
      this.fly(this.viewOf(this.current, 0.02));
    }

    tell() {
      this.label.textContent = this.scene.cameras[this.current].name;
    }

    set(options) {
      Object.assign(this.options, options);
      this.draw();
    }

    toggleFullscreen() {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.root.requestFullscreen?.();
    }

    // --- drawing, only when something changed; while it moves, a slow machine draws fewer points ---

    draw() {
      if (this.asked || !this.scene) return;
      this.asked = requestAnimationFrame((now) => {
        this.asked = 0;
        const flying = this.orbit.advance(now);
        this.paint(this.step);
        clearTimeout(this.resting);
        if (flying) this.draw();
        else if (this.step > 1 || !this.measured) this.resting = setTimeout(() => this.refine(), REST);
      });
    }

    // Draws everything, and learns how long that takes.
    refine() {
      const begin = performance.now();
      this.paint(1);
      this.painter.finish();
      this.step = this.stepFor((performance.now() - begin) / FRAME);
      this.measured = true;
    }

    // An odd step that does not pick the same columns in every row.
    stepFor(wanted) {
      if (!(wanted > 1)) return 1;
      let step = Math.ceil(Math.min(wanted, COARSEST)) | 1;
      while (this.scene.maps.some((map) => map.width % step === 0)) step += 2;
      return step;
    }

    clip() {
      const { right, down, forward } = this.orbit.axes();
      const { focal, distance } = this.orbit.state;
      const aspect = this.canvas.width / this.canvas.height;
      const far = 1e4 * Math.max(distance, this.scene.cameraSize);
      const eye = this.orbit.eye();
      const { clipFromWorld } = window.mast3r.math;
      return clipFromWorld(eye, right, down, forward, focal / aspect, focal, far * 1e-6, far);
    }

    paint(step) {
      const { clientWidth, clientHeight } = this.canvas;
      if (!clientWidth || !clientHeight) return;
      const ratio = Math.min(2, window.devicePixelRatio || 1);
      const size = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
      if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
      const { drop, surface, cameras, pointSize } = this.options;
      const dark = document.body.classList.contains("dark");
      this.painter.paint(this.clip(), (this.orbit.state.focal * size[1]) / 2, {
        eye: this.orbit.eye(),
        forward: this.orbit.axes().forward,
        background: dark ? [0.06, 0.09, 0.165] : [0.945, 0.96, 0.976],
        surface: surface && step === 1,
        cameras,
        pointSize: 2 * pointSize,
        step,
        limit: Math.max(1, 1 + (254 * drop) / 100),
      });
      this.root.dataset.drop = drop; // what is on the screen now, for tests
      this.root.dataset.kind = surface && step === 1 ? "surface" : "points";
    }

    // --- hands ---

    listen() {
      const { canvas } = this;
      new ResizeObserver(() => this.draw()).observe(this.root);
      new MutationObserver(() => this.draw()).observe(document.body, { attributeFilter: ["class"] });
      canvas.addEventListener("pointerdown", (event) => this.onDown(event));
      canvas.addEventListener("pointermove", (event) => this.onMove(event));
      ["pointerup", "pointercancel"].forEach((kind) =>
        canvas.addEventListener(kind, (event) => this.pointers.delete(event.pointerId)),
      );
      canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
      canvas.addEventListener("contextmenu", (event) => event.preventDefault());
      canvas.addEventListener("dblclick", (event) => this.onDoubleClick(event));
      canvas.addEventListener("keydown", (event) => this.onKey(event));
    }

    onDown(event) {
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      this.touched = this.hint.hidden = true;
    }

    onMove(event) {
      const last = this.pointers.get(event.pointerId);
      if (!last || !this.scene) return;
      const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]].map((d) => d / this.canvas.clientHeight);
      const before = this.spread();
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.pointers.size > 1) {
        this.orbit.zoom(before / (this.spread() || before || 1));
        this.orbit.pan(dx / 2, dy / 2);
      } else if (event.buttons & 6 || event.shiftKey) this.orbit.pan(dx, dy);
      else this.orbit.turn(-2.5 * dx, 2.5 * dy);
      this.draw();
    }

    // Distance of two fingers.
    spread() {
      const [a, b] = [...this.pointers.values()];
      return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 1;
    }

    onWheel(event) {
      if (!this.scene) return;
      event.preventDefault();
      this.orbit.zoom(Math.exp(0.0012 * event.deltaY * (event.deltaMode ? 30 : 1)));
      this.draw();
    }

    onKey(event) {
      if (!this.scene || event.ctrlKey || event.metaKey || event.altKey) return;
      const action = event.key === "Home" ? () => this.home() : KEYS[event.key === "=" ? "+" : event.key];
      if (!action) return;
      event.preventDefault();
      action(this.orbit);
      this.draw();
    }

    onDoubleClick(event) {
      if (!this.scene) return;
      const box = this.canvas.getBoundingClientRect();
      const point = this.pick(event.clientX - box.left, event.clientY - box.top);
      if (!point) return;
      const { subtract, dot } = window.mast3r.math;
      const distance = dot(subtract(point, this.orbit.eye()), this.orbit.axes().forward);
      this.fly({ ...this.orbit.state, x: point[0], y: point[1], z: point[2], distance });
    }

    // The nearest shown point within some pixels of a place on the canvas.
    pick(x, y) {
      const clip = this.clip();
      const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
      const limit = 1 + (254 * this.options.drop) / 100;
      let best = null;
      this.scene.maps.forEach(({ points, colors }) => {
        for (let i = 0; i < colors.length / 4; i++) {
          if (colors[4 * i + 3] < limit) continue;
          const p = [points[3 * i], points[3 * i + 1], points[3 * i + 2]];
          const seen = window.mast3r.math.project(clip, p);
          const off = Math.hypot(((seen.x + 1) / 2) * w - x, ((1 - seen.y) / 2) * h - y);
          if (off < 8 && seen.depth > 0 && (!best || seen.depth < best.depth)) best = { p, depth: seen.depth };
        }
      });
      return best?.p;
    }
  };
})();
