// WebGL 2: draws pointmaps as points or as a surface, and cameras as pyramids with their photos.
"use strict";
window.mast3r.Painter = (() => {
  const POINT_VERTEX = `#version 300 es
    layout(location = 0) in vec3 position;
    layout(location = 1) in vec4 color;  // the fourth value is the rank of the confidence
    uniform mat4 clipFromWorld;
    uniform vec3 center;
    uniform float limit, spacing, pixels;
    out vec4 seen;
    void main() {
      seen = color;
      gl_Position = clipFromWorld * vec4(position, 1.0);
      gl_PointSize = clamp(distance(position, center) * spacing * pixels / gl_Position.w, 1.0, 40.0);
      if (color.a * 255.0 < limit) gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
    }`;
  const POINT_FRAGMENT = `#version 300 es
    precision mediump float;
    in vec4 seen;
    out vec4 result;
    void main() {
      vec2 p = gl_PointCoord * 2.0 - 1.0;
      if (dot(p, p) > 1.3) discard;
      result = vec4(seen.rgb, 1.0);
    }`;
  const SURFACE_VERTEX = `#version 300 es
    layout(location = 0) in vec3 position;
    layout(location = 1) in vec4 color;
    uniform mat4 clipFromWorld;
    out vec4 seen;
    void main() {
      seen = color;
      gl_Position = clipFromWorld * vec4(position, 1.0);
    }`;
  const SURFACE_FRAGMENT = `#version 300 es
    precision mediump float;
    in vec4 seen;
    uniform float limit;
    out vec4 result;
    void main() {
      if (seen.a * 255.0 < limit) discard;
      result = vec4(seen.rgb, 1.0);
    }`;
  const LINE_VERTEX = `#version 300 es
    layout(location = 0) in vec3 position;
    layout(location = 1) in vec2 place;
    uniform mat4 clipFromWorld;
    out vec2 at;
    void main() {
      at = place;
      gl_Position = clipFromWorld * vec4(position, 1.0);
    }`;
  const LINE_FRAGMENT = `#version 300 es
    precision mediump float;
    uniform vec4 tint;
    out vec4 result;
    void main() { result = tint; }`;
  const PHOTO_FRAGMENT = `#version 300 es
    precision mediump float;
    in vec2 at;
    uniform sampler2D photo;
    uniform float opacity;
    out vec4 result;
    void main() { result = vec4(texture(photo, at).rgb, 1.0) * opacity; }`;
  const FARTHER = 1.1; // neighbours whose distances differ more belong to different surfaces

  function compile(gl, vertex, fragment) {
    const program = gl.createProgram();
    [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]].forEach(([kind, source]) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    });
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    const names = ["clipFromWorld", "center", "limit", "spacing", "pixels", "tint", "photo", "opacity"];
    const places = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)]));
    return { program, ...places };
  }

  // Triangles between neighbouring pixels of one map, left out across jumps of the distance.
  function triangles(map) {
    const { width, height, points, colors, center } = map;
    const distance = new Float32Array(width * height);
    for (let i = 0; i < distance.length; i++) {
      const [x, y, z] = [points[3 * i] - center[0], points[3 * i + 1] - center[1], points[3 * i + 2] - center[2]];
      distance[i] = colors[4 * i + 3] ? Math.hypot(x, y, z) : NaN;
    }
    const found = new Uint32Array(6 * (width - 1) * (height - 1));
    let count = 0;
    const offer = (a, b, c) => {
      const near = Math.min(distance[a], distance[b], distance[c]);
      if (Math.max(distance[a], distance[b], distance[c]) > FARTHER * near || Number.isNaN(near)) return;
      found[count++] = a;
      found[count++] = b;
      found[count++] = c;
    };
    for (let row = 0; row + 1 < height; row++) {
      for (let a = row * width; a + 1 < (row + 1) * width; a++) {
        offer(a, a + width, a + 1);
        offer(a + 1, a + width, a + width + 1);
      }
    }
    return found.subarray(0, count);
  }

  // Corners, edges and the photo's plane of a camera drawn as a pyramid.
  function pyramid(camera, size) {
    const corner = ([x, y]) => camera.place([x * size, y * size, size]);
    const corners = camera.corners.map(corner);
    const lines = corners.flatMap((p, i) => [camera.center, p, p, corners[(i + 1) % 4]]);
    const vertices = lines.flatMap((p) => [...p, 0, 0]);
    const uv = [[0, 0], [1, 0], [1, 1], [0, 1]];
    const photo = [0, 1, 2, 0, 2, 3].flatMap((i) => [...corners[i], ...uv[i]]);
    return new Float32Array([...vertices, ...photo]);
  }

  // 0..1: how much a camera stands before the eye and looks the same way; it would hide the scene.
  function inTheWay(camera, eye, forward) {
    const { dot, normalize, subtract } = window.mast3r.math;
    const aligned = Math.min(dot(camera.forward, forward), dot(normalize(subtract(camera.center, eye)), forward));
    return Math.min(1, Math.max(0, (aligned - 0.945) / 0.04));
  }

  // Whether a program, not a graphics card, draws.
  function drawsInSoftware() {
    const gl = document.createElement("canvas").getContext("webgl2");
    const names = gl?.getExtension("WEBGL_debug_renderer_info");
    const renderer = gl ? gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : gl.RENDERER) : "";
    gl?.getExtension("WEBGL_lose_context")?.loseContext();
    return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(renderer);
  }

  return class Painter {
    constructor(canvas) {
      this.software = drawsInSoftware();
      this.gl = canvas.getContext("webgl2", { antialias: !this.software, alpha: false });
      if (!this.gl) throw new Error("no WebGL 2");
      this.points = compile(this.gl, POINT_VERTEX, POINT_FRAGMENT);
      this.surface = compile(this.gl, SURFACE_VERTEX, SURFACE_FRAGMENT);
      this.lines = compile(this.gl, LINE_VERTEX, LINE_FRAGMENT);
      this.photos = compile(this.gl, LINE_VERTEX, PHOTO_FRAGMENT);
      this.maps = [];
      this.cameras = [];
    }

    clear() {
      const { gl } = this;
      [...this.maps, ...this.cameras].forEach((drawn) => {
        gl.deleteVertexArray(drawn.array);
        drawn.buffers.forEach((buffer) => gl.deleteBuffer(buffer));
        if (drawn.texture) gl.deleteTexture(drawn.texture);
      });
      this.maps = [];
      this.cameras = [];
    }

    load(scene) {
      this.clear();
      this.maps = scene.maps.map((map) => this.loadMap(map));
      this.cameras = scene.cameras.map((camera) => this.loadCamera(camera, scene.cameraSize, scene.maps[camera.map]));
    }

    buffer(data, target = this.gl.ARRAY_BUFFER) {
      const buffer = this.gl.createBuffer();
      this.gl.bindBuffer(target, buffer);
      this.gl.bufferData(target, data, this.gl.STATIC_DRAW);
      return buffer;
    }

    loadMap(map) {
      const { gl } = this;
      const array = gl.createVertexArray();
      gl.bindVertexArray(array);
      const drawn = { map, array, buffers: [], count: map.width * map.height, triangles: null };
      drawn.buffers = [this.buffer(map.points), this.buffer(map.colors)];
      gl.enableVertexAttribArray(0);
      gl.enableVertexAttribArray(1);
      this.pointAt(drawn, 1);
      gl.bindVertexArray(null);
      return drawn;
    }

    loadCamera(camera, size, map) {
      const { gl } = this;
      const array = gl.createVertexArray();
      gl.bindVertexArray(array);
      const buffer = this.buffer(pyramid(camera, size));
      gl.enableVertexAttribArray(0);
      gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 20, 0);
      gl.enableVertexAttribArray(1);
      gl.vertexAttribPointer(1, 2, gl.FLOAT, false, 20, 12);
      gl.bindVertexArray(null);
      return { camera, array, buffers: [buffer], texture: map ? this.texture(map) : null };
    }

    texture(map) {
      const { gl } = this;
      const texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, map.width, map.height, 0, gl.RGBA, gl.UNSIGNED_BYTE, map.colors);
      gl.generateMipmap(gl.TEXTURE_2D);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
      return texture;
    }

    addTriangles(drawn) {
      const { gl } = this;
      const found = triangles(drawn.map);
      gl.bindVertexArray(drawn.array);
      drawn.buffers.push(this.buffer(found, gl.ELEMENT_ARRAY_BUFFER));
      gl.bindVertexArray(null);
      drawn.triangles = found.length;
    }

    // Waits until everything is drawn.
    finish() {
      this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
    }

    // options: {eye, forward, background, surface, limit, cameras, pointSize, step}; focal in pixels of the canvas.
    // step: draw every so manyth point only.
    paint(clip, focal, options) {
      const { gl } = this;
      gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
      gl.clearColor(...options.background, 1);
      gl.enable(gl.DEPTH_TEST);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      const kind = options.surface ? this.surface : this.points;
      gl.useProgram(kind.program);
      gl.uniformMatrix4fv(kind.clipFromWorld, false, clip);
      gl.uniform1f(kind.limit, options.limit);
      this.maps.forEach((drawn) => this.paintMap(drawn, kind, focal, options));
      if (options.cameras) this.paintCameras(clip, options);
      gl.bindVertexArray(null);
    }

    paintMap(drawn, kind, focal, options) {
      const { gl } = this;
      if (options.surface && drawn.triangles === null) this.addTriangles(drawn);
      gl.bindVertexArray(drawn.array);
      if (options.surface) {
        this.pointAt(drawn, 1);
        gl.drawElements(gl.TRIANGLES, drawn.triangles, gl.UNSIGNED_INT, 0);
        return;
      }
      gl.uniform3fv(kind.center, drawn.map.center);
      gl.uniform1f(kind.spacing, drawn.map.spacing * Math.sqrt(options.step));
      gl.uniform1f(kind.pixels, focal * options.pointSize);
      this.pointAt(drawn, options.step);
      gl.drawArrays(gl.POINTS, 0, Math.floor(drawn.count / options.step));
    }

    // Every `step`-th point of the bound map.
    pointAt(drawn, step) {
      const { gl } = this;
      gl.bindBuffer(gl.ARRAY_BUFFER, drawn.buffers[0]);
      gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 12 * step, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, drawn.buffers[1]);
      gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 4 * step, 0);
    }

    paintCameras(clip, { eye, forward }) {
      const { gl } = this;
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      this.cameras.forEach(({ camera, array, texture }) => {
        const opacity = 1 - inTheWay(camera, eye, forward);
        gl.bindVertexArray(array);
        this.paintEdges(clip, camera, Math.max(opacity, 0.25));
        if (texture && opacity) this.paintPhoto(clip, texture, 0.85 * opacity);
      });
      gl.disable(gl.BLEND);
    }

    paintEdges(clip, camera, opacity) {
      const { gl } = this;
      gl.useProgram(this.lines.program);
      gl.uniformMatrix4fv(this.lines.clipFromWorld, false, clip);
      gl.uniform4f(this.lines.tint, ...camera.color.map((value) => (value / 255) * opacity), opacity);
      gl.drawArrays(gl.LINES, 0, 16);
    }

    paintPhoto(clip, texture, opacity) {
      const { gl } = this;
      gl.useProgram(this.photos.program);
      gl.uniformMatrix4fv(this.photos.clipFromWorld, false, clip);
      gl.uniform1f(this.photos.opacity, opacity);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.depthMask(false);
      gl.drawArrays(gl.TRIANGLES, 16, 6);
      gl.depthMask(true);
    }
  };
})();
